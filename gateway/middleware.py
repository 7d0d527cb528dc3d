"""The plain ASGI layers around the application, outermost first: RequestLayer, DrainLayer,
AuthLayer, BodyLimitLayer.

Classes, never function-style middleware: that one can hide a client's hang-up from the route.
"""

import json
import logging
import re
import secrets
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth import ApiKeys
from gateway.drain import Drain
from gateway.errors import APIError, EngineError, UnavailableError
from gateway.metrics import GatewayMetrics
from gateway.state import RequestFacts, set_facts, set_tenant

logger = logging.getLogger(__name__)

# Open without a key and answered while draining: probes must always learn the truth.
PROBE_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping", "/version"})
_DRAIN_PATHS = PROBE_PATHS | {"/metrics"}
_USABLE_ID = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}")
_CLIENT_CLOSED = 499  # nginx's number for a client that left before the answer


def error_response(error: APIError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    # ASCII: a message may quote input that is no valid UTF-8.
    body = json.dumps(error.body()).encode("ascii")
    return Response(body, error.status, headers, media_type="application/json")


def usable_request_id(value: str | None) -> str | None:
    return value if value is not None and _USABLE_ID.fullmatch(value) else None


class RequestLayer:
    """Names the request, counts it, and answers what nothing else answered."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts = _facts(scope)
        set_facts(scope, facts)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = facts.request_id
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_named)
        except Exception:
            logger.exception("request failed request_id=%s", facts.request_id)
            if status:
                raise
            await error_response(EngineError("The server failed to answer this request."))(
                scope, receive, send_named
            )
        finally:
            self._metrics.in_flight.dec()
            self._metrics.count_http(_route(scope), scope["method"], status or _CLIENT_CLOSED)


class DrainLayer:
    """Counts what runs and refuses what comes once the server stops."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope) in _DRAIN_PATHS:
            await self.app(scope, receive, send)
            return
        if self._drain.is_draining:
            response = error_response(
                UnavailableError("The server is shutting down.", retry_after_s=1.0)
            )
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        self._drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self._drain.leave()


class AuthLayer:
    """Lets in who has a key, and notes the tenant."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _path(scope) not in PROBE_PATHS:
            try:
                set_tenant(scope, self._keys.tenant(_header(scope, b"authorization")))
            except APIError as error:
                response = error_response(error)
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimitLayer:
    """Stops reading a body that is longer than the limit, whatever its header claims."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = _header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._max_bytes:
            await error_response(self._error())(scope, receive, send)
            return
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, self._error().message)
            return message

        await self.app(scope, receive_limited, send)

    def _error(self) -> "BodyTooLargeError":
        return BodyTooLargeError(
            f"The request body is larger than the limit of {self._max_bytes} bytes."
        )


class BodyTooLargeError(APIError):
    status = 413
    type = "invalid_request_error"


def _facts(scope: Scope) -> RequestFacts:
    header = _header(scope, b"x-request-id")
    given = usable_request_id(None if header is None else header.decode("latin-1"))
    return RequestFacts(
        request_id=given or secrets.token_hex(16),
        is_client_id=given is not None,
        arrival_s=perf_counter(),
    )


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def _path(scope: Scope) -> str:
    """Behind a proxy that keeps its prefix, without it."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _route(scope: Scope) -> str:
    """The route's template: a label must not take values that clients choose."""
    return getattr(scope.get("route"), "path", "unmatched")
