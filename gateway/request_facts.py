"""What is known of an HTTP request before any route runs. The outermost layer makes it."""

from dataclasses import dataclass

from starlette.types import Scope


@dataclass(frozen=True, slots=True)
class RequestFacts:
    request_id: str  # the client's where it sent a usable one
    is_client_id: bool
    arrival_s: float  # of the clock that the metrics use


def request_header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
