"""The short way to the routes that are asked a hundred times a second.

FastAPI's routing, dependency solving and exit stacks cost a request about as much as everything
else the gateway does for it. A body that is right goes straight to the route's function; anything
else (a wrong body, another path) takes FastAPI's way with the same bytes, so errors, documents and
rare routes have one home.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.request_facts import route_path
from gateway.turnstile import Turnstile

Endpoint = Callable[[Any, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """A POST route whose function takes its JSON body and the request, and nothing else."""

    route: APIRoute
    body_type: type[BaseModel]
    endpoint: Endpoint

    def try_parse(self, data: bytes, content_type: str) -> BaseModel | None:
        """None: not a plain JSON body that fits."""
        if content_type.partition(";")[0].strip().lower() != "application/json":
            return None
        try:
            return self.body_type.model_validate(json.loads(data))
        except (ValidationError, ValueError, RecursionError):
            return None


def direct_routes(*routers: APIRouter) -> dict[str, DirectRoute]:
    """By path: the routers' POST routes of that form."""
    found: dict[str, DirectRoute] = {}
    for route in (route for router in routers for route in router.routes):
        assert isinstance(route, APIRoute)
        body_type = route.endpoint.__annotations__.get("body")
        if "POST" in (route.methods or ()) and isinstance(body_type, type):
            found[route.path] = DirectRoute(route, body_type, route.endpoint)
    return found


class DirectLayer:
    """The innermost layer: outside of FastAPI's own handling of exceptions, whose handlers it asks
    by itself."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, DirectRoute]) -> None:
        self.app = app
        self._routes = routes
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        direct = self._routes.get(route_path(scope)) if is_post else None
        if direct is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = direct.route
        request = Request(scope, receive)
        try:
            await self._answer(direct, request, send)
        except ClientDisconnect:
            return  # in the middle of its body: nobody is there to be answered
        except Exception as error:
            handler = _handler(request, error)
            if handler is None:
                raise
            response = await handler(request, error)
            await response(scope, receive, send)

    async def _answer(self, direct: DirectRoute, request: Request, send: Send) -> None:
        data = await request.body()
        await self._turnstile.enter()
        body = direct.try_parse(data, request.headers.get("content-type", ""))
        if body is None:
            await self.app(request.scope, _again(data, request.receive), send)
            return
        response = await direct.endpoint(body, request)
        await response(request.scope, request.receive, send)


def _handler(
    request: Request, error: Exception
) -> Callable[[Request, Exception], Awaitable[Response]] | None:
    """The application's own for this kind of error."""
    handlers = request.app.exception_handlers
    return next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)


def _again(data: bytes, receive: Receive) -> Receive:
    """The body once more, for who reads it from the start."""
    is_read = False

    async def receive_again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": data, "more_body": False}

    return receive_again
