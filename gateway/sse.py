"""A generation as a server-sent event stream, and the watch for clients that go away.

Frames: `data: {json}\\n\\n`, at the end `data: [DONE]\\n\\n`. The headers go out with the first
token, so whatever fails before it is an ordinary HTTP error that clients know how to retry.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.body_writer import BodyWriter, body_writer
from gateway.chunks import Chunks
from gateway.errors import APIError, EngineError
from gateway.generation import Generation
from gateway.server_timing import server_timing
from gateway.text.choice import ChoiceEvent

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
    worker = asyncio.current_task()
    assert worker is not None
    is_over = is_left = False

    def leave(watch: asyncio.Task[None]) -> None:
        nonlocal is_left
        if not is_over and not watch.cancelled():
            is_left = True
            worker.cancel()

    watch = asyncio.create_task(_watch_client(receive, is_stalled, check_s))
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if is_left and worker.uncancel() == 0:
            raise ClientDisconnected from None
        raise
    finally:
        is_over = True
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


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
    """One frame for all that one engine step brought, written within the call that brought it.

    While its client does not read, tokens stay in their stream as ids, and come as one frame later.
    """

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
        self._writer: BodyWriter | None = None
        self._last_frames = b""  # of the events that ended the generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_s = self._stall_timeout_s / 4
            await until_disconnect(receive, self._run(scope, send), self._is_stalled, check_s)
        except ClientDisconnected:
            logger.debug("client left its stream")

    async def _run(self, scope: Scope, send: Send) -> None:
        async with self._generation as generation:
            first = await generation.read()
            timing = server_timing(generation.timing, generation.first_token_s)
            self.raw_headers.append((b"server-timing", timing.encode()))
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._writer = body_writer(scope, send)
            try:
                self._write(first)
                while not generation.is_finished:
                    await self._wait(self._writer.drained())
                    await generation.pump(self._write)
                await self._wait(self._writer.drained())
                body = self._last_frames
                if self._wants_usage:
                    body += self._chunks.usage(generation.usage())
            except APIError as error:
                body = error_frame(error)
            except Exception:  # the status is sent: only the stream itself can tell
                logger.exception("stream failed")
                body = error_frame(EngineError("The server failed to go on with this answer."))
            end = {"type": "http.response.body", "body": body + DONE, "more_body": False}
            await self._wait(send(end))

    def _write(self, events: list[ChoiceEvent]) -> bool:
        """False: the client is behind. The last frames are kept, to leave with the stream's end."""
        assert self._writer is not None
        frames = self._frames(events)
        if self._generation.is_finished:
            self._last_frames = frames
            return False
        return not frames or self._writer.try_write(frames)

    def _frames(self, events: list[ChoiceEvent]) -> bytes:
        generation = self._generation
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

    async def _wait(self, sending: Awaitable[None]) -> None:
        """Waits for the client, and lets the watch see for how long."""
        self._sending_since_s = asyncio.get_running_loop().time()
        await sending
        self._sending_since_s = None

    def _is_stalled(self) -> bool:
        """The client reads nothing, so `send` waits: its blocks are better used by others."""
        since = self._sending_since_s
        if since is None:
            return False
        return asyncio.get_running_loop().time() - since > self._stall_timeout_s
