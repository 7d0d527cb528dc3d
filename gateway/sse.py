"""A generation as a server-sent event stream, and the watch for clients that go away.

Frames: `data: {json}\\n\\n`, at the end `data: [DONE]\\n\\n`. The headers go out with the first
token, so whatever fails before it is an ordinary HTTP error that clients know how to retry.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.chunks import Chunks
from gateway.errors import APIError, EngineError
from gateway.generation import Generation

logger = logging.getLogger(__name__)
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_CHECK_S = 60.0


class ClientDisconnected(Exception):
    """Nobody is there to be answered."""


def error_frame(error: APIError) -> bytes:
    return b"data: " + msgspec.json.encode(error.body()) + b"\n\n"


async def until_disconnect(
    receive: Receive,
    work: Coroutine[Any, Any, T],
    is_stalled: Callable[[], bool] = lambda: False,
    check_s: float = _CHECK_S,
) -> T:
    """Runs `work`, and cancels it as soon as the client is gone, or is stalled at a check.

    Raises: ClientDisconnected, and what `work` raises.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_watch_client(receive, is_stalled, check_s))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        watch.result()
        raise ClientDisconnected
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _watch_client(receive: Receive, is_stalled: Callable[[], bool], check_s: float) -> None:
    """Returns when the client is gone."""
    while not is_stalled():
        try:
            async with asyncio.timeout(check_s):
                message = await receive()
        except TimeoutError:
            continue
        if message["type"] == "http.disconnect":
            return


class EventStream(Response):
    """A plain ASGI response: one send for all that one wake-up brought, no layer in between."""

    def __init__(
        self,
        generation: Generation,
        chunks: Chunks,
        *,
        wants_usage: bool = False,
        wants_running_usage: bool = False,
        wants_token_ids: bool = False,
        stalled_client_timeout_s: float = 300.0,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(_HEADERS)
        self._generation = generation
        self._chunks = chunks
        self._wants_usage = wants_usage
        self._wants_running_usage = wants_running_usage
        self._unseen = set(range(len(generation.plan.requests))) if wants_token_ids else set()
        self._stall_timeout_s = stalled_client_timeout_s
        self._sending_since_s: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_s = self._stall_timeout_s / 4
            await until_disconnect(receive, self._run(send), self._is_stalled, check_s)
        except ClientDisconnected:
            logger.debug("client left its stream")

    async def _run(self, send: Send) -> None:
        async with self._generation as generation:
            body = await self._next_frames()
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            try:
                while not generation.is_finished:
                    if body:
                        await self._send(send, body)
                    body = await self._next_frames()
                if self._wants_usage:
                    body += self._chunks.usage(generation.usage())
            except APIError as error:
                body = error_frame(error)
            except Exception:  # the status is sent: only the stream itself can tell
                logger.exception("stream failed")
                body = error_frame(EngineError("The server failed to go on with this answer."))
            await self._send(send, body + DONE, is_last=True)

    async def _next_frames(self) -> bytes:
        generation = self._generation
        events = await generation.read()
        usage = generation.usage() if self._wants_running_usage else None
        if len(events) == 1 and not self._unseen:
            return self._chunks.write(events[0], usage)
        frames = []
        for event in events:
            prompt_ids = None
            if event.index in self._unseen:
                self._unseen.discard(event.index)
                prompt_ids = generation.plan.requests[event.index].prompt_token_ids
            frames.append(self._chunks.write(event, usage, prompt_ids))
        return b"".join(frames)

    async def _send(self, send: Send, body: bytes, *, is_last: bool = False) -> None:
        self._sending_since_s = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self._sending_since_s = None

    def _is_stalled(self) -> bool:
        """The client reads nothing, so `send` waits: its blocks are better used by others."""
        since = self._sending_since_s
        if since is None:
            return False
        return asyncio.get_running_loop().time() - since > self._stall_timeout_s
