"""What is known of an HTTP request before any route runs. The outermost layer makes it."""

from dataclasses import dataclass

from starlette.types import Scope


@dataclass(frozen=True, slots=True)
class RequestFacts:
    request_id: str  # the client's where it sent a usable one
    is_client_id: bool
    arrival_s: float  # of the clock that the metrics use


def route_path(scope: Scope) -> str:
    """The path as the routes have it: behind a proxy that keeps its prefix, without that."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def request_header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
