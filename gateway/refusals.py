"""Why the cluster did not take or finish a request, and the HTTP answer that makes of it.

A refusal is a value between the clients and the router; only what the router cannot mend becomes an
exception. Codes are those of google.rpc.Code, the numbers in protos/common.proto.
"""

from dataclasses import dataclass
from enum import IntEnum

from gateway.errors import (
    APIError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
)

DEFAULT_RETRY_AFTER_S = 1.0


class Code(IntEnum):
    """The part of google.rpc.Code that Shoal's services use."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    INTERNAL = 13
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class Refusal:
    code: int
    message: str
    field: str = ""  # the offending parameter's wire name
    retry_after_s: float = 0.0  # 0: no advice

    @property
    def is_worth_another_replica(self) -> bool:
        """The request itself is fine; the replica cannot go on with it."""
        return self.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)


def unavailable(message: str) -> Refusal:
    return Refusal(Code.UNAVAILABLE, message)


def api_error(refusal: Refusal, model: str) -> APIError:
    """The client's answer to a request for `model` that nothing could mend."""
    message = refusal.message or "the cluster refused the request without saying why"
    retry_after_s = refusal.retry_after_s or DEFAULT_RETRY_AFTER_S
    match refusal.code:
        case Code.INVALID_ARGUMENT:
            return InvalidRequestError(message, param=refusal.field or None)
        case Code.NOT_FOUND:
            return ModelNotFoundError(model)
        case Code.RESOURCE_EXHAUSTED:
            return OverloadedError(message, retry_after_s=retry_after_s)
        case Code.DEADLINE_EXCEEDED:
            return DeadlineError(message)
        case Code.UNAVAILABLE:
            return UnavailableError(message, retry_after_s=retry_after_s)
    return EngineError(message)
