"""The plain ASGI layers around the application, outermost first: RequestLayer, starlette's CORS
layer, DrainLayer, TenantLayer, and those of gateway/body_limit.py and gateway/direct_routes.py.

Classes, never function-style middleware: that one can hide a client's hang-up from the route. What
a request is charged and counted for is gateway/account.py.
"""

import logging
import re
import secrets
from collections.abc import Callable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.account import CLIENT_CLOSED, Account
from gateway.auth import KeyRing
from gateway.drain import Drain
from gateway.error_response import error_response
from gateway.errors import APIError, EngineError, OverloadedError, RateLimitError, UnavailableError
from gateway.log_context import set_request_id, unset_request_id
from gateway.metrics import GatewayMetrics
from gateway.request_facts import RequestFacts, request_header, route_path
from gateway.state import account_in, facts_in, set_account, set_facts
from gateway.tenants import Tenant

logger = logging.getLogger(__name__)

# Open without a key and answered while draining: probes must always learn the truth.
PROBE_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping", "/version"})
_DRAIN_PATHS = PROBE_PATHS | {"/metrics", "/load"}
_USABLE_ID = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}")

OpenAccount = Callable[[Tenant, RequestFacts], Account]


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
        log_token = set_request_id(facts.request_id)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(message, scope, facts)
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
            unset_request_id(log_token)
            self._metrics.in_flight.dec()
            seconds = perf_counter() - facts.arrival_s
            self._metrics.count_http(
                _route(scope), _method(scope), status or CLIENT_CLOSED, seconds
            )


def _complete(start: Message, scope: Scope, facts: RequestFacts) -> None:
    """The headers that every answer has, whoever gives it."""
    headers = [*start.get("headers", ()), (b"x-request-id", facts.request_id.encode())]
    account = account_in(scope)
    if account is not None:
        account.status = start["status"]
        headers += account.headers()
    start["headers"] = headers


class DrainLayer:
    """Counts what runs, and refuses what is too much or comes once the server stops."""

    def __init__(self, app: ASGIApp, drain: Drain, limit: int | None = None) -> None:
        self.app = app
        self._drain = drain
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in _DRAIN_PATHS:
            await self.app(scope, receive, send)
            return
        if self._drain.is_draining:
            response = error_response(
                UnavailableError("The server is shutting down.", retry_after_s=1.0)
            )
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        if self._limit is not None and self._drain.num_active >= self._limit:
            error = OverloadedError(
                f"The server answers at most {self._limit} requests at once.", retry_after_s=1.0
            )
            await error_response(error)(scope, receive, send)
            return
        self._drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self._drain.leave()


class TenantLayer:
    """Lets in who has a key, as often as the key allows, and closes the request's account."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        open_account: OpenAccount,
        open_paths: frozenset[str] = PROBE_PATHS,
    ) -> None:
        self.app = app
        self._keys = keys
        self._open_account = open_account
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in self._open_paths:
            await self.app(scope, receive, send)
            return
        try:
            tenant = self._keys.current.tenant(request_header(scope, b"authorization"))
        except APIError as error:
            response = error_response(error)
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        account = self._open_account(tenant, facts_in(scope))
        set_account(scope, account)
        try:
            await self._answer(account, scope, receive, send)
        finally:
            account.close()

    async def _answer(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            try:
                account.admit()
            except RateLimitError as error:
                await error_response(error)(scope, receive, send)
                return
        try:
            await self.app(scope, receive, send)
        except Exception:
            account.status = account.status or 500  # what RequestLayer will answer
            raise


def _facts(scope: Scope) -> RequestFacts:
    header = request_header(scope, b"x-request-id")
    given = usable_request_id(None if header is None else header.decode("latin-1"))
    return RequestFacts(
        request_id=given or secrets.token_hex(16),
        is_client_id=given is not None,
        arrival_s=perf_counter(),
    )


def _route(scope: Scope) -> str:
    """The route's template: a label must not take values that clients choose."""
    return getattr(scope.get("route"), "path", "unmatched")


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


def _method(scope: Scope) -> str:
    """Likewise."""
    return scope["method"] if scope["method"] in _METHODS else "other"
