"""The ASGI layer around the routes: how large a body may be, and how long it may take to come."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.error_response import error_response
from gateway.errors import BodyTooLargeError
from gateway.request_facts import request_header


class BodyLimitLayer:
    """Stops reading a body that is longer than the limit, whatever its header claims, or that does
    not come."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = request_header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._max_bytes:
            await error_response(self._error())(scope, receive, send)
            return
        num_bytes = 0
        is_complete = False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:  # what comes is the client's end, and no deadline is set to that
                return await receive()
            message = await self._receive_in_time(receive)
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if num_bytes > self._max_bytes:
                # Of starlette's kind: FastAPI takes any other for a body that cannot be parsed.
                raise HTTPException(413, self._error().message)
            return message

        await self.app(scope, receive_limited, send)

    async def _receive_in_time(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await receive()
        except TimeoutError:
            message = f"The request body was not sent: nothing came for {self._timeout_s:g} s."
            raise HTTPException(408, message, headers={"connection": "close"}) from None

    def _error(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The request body is larger than the limit of {self._max_bytes} bytes."
        )
