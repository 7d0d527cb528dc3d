"""What the gateway's long-lived gRPC streams have in common: supervised parts, silence as loss,
back-off.

Knows nothing of what travels on them. Used by the scheduler client and the worker connections; each
attempt gets a channel of its own, so the pace of reconnecting is theirs and not gRPC's.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc

from protos.channel import CLIENT_OPTIONS, SEND_INTERVAL_S, ChannelOptions

log = logging.getLogger(__name__)

_MAX_TICK_S = 0.25

# Channels to one address would share a connection, and with it gRPC's own back-off, through the
# global pool.
OPTIONS: ChannelOptions = [*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]


class SendPace:
    """Keeps messages an interval apart, so that what comes meanwhile leaves together. The first
    after a pause leaves at once. For one writer.
    """

    def __init__(self, interval_s: float = SEND_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._next_s = 0.0

    async def wait(self) -> None:
        """Before a message."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            await asyncio.sleep(self._next_s - now_s)
            now_s = self._next_s
        self._next_s = now_s + self._interval_s


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a stream ended. `code` is None when this side gave it up."""

    message: str
    code: grpc.StatusCode | None = None


class Backoff:
    """Doubling pauses, each scattered over its upper half so that many clients do not return at
    once."""

    def __init__(self, first_s: float = 0.1, limit_s: float = 1.0) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._next_s = first_s

    def next_s(self) -> float:
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._limit_s)
        return pause_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._next_s = self._first_s


async def keep_open(
    session: Callable[[], Awaitable[Loss]], on_lost: Callable[[str], None], backoff: Backoff
) -> None:
    """One session after the other, until cancelled. `on_lost` hears of each one's end and why, of
    the last one's too. A session that fails of a fault of ours is no reason to give up."""
    while True:
        reason = "the connection was closed"
        try:
            reason = (await session()).message
        except Exception as error:
            log.exception("a standing stream failed")
            reason = f"{type(error).__name__}: {error}"
        finally:
            on_lost(reason)
        await asyncio.sleep(backoff.next_s())


async def keep_writing(
    has_commands: asyncio.Event, write_queued: Callable[[], Awaitable[None]]
) -> None:
    """Writes what is queued whenever there is something, at a pace: requests that come together are
    queued one by one. Ends only with the stream.
    """
    pace = SendPace()
    while True:
        await has_commands.wait()
        await pace.wait()
        has_commands.clear()
        await write_queued()


async def run_until_lost(
    parts: list[Coroutine[Any, Any, None]], lost_at: Callable[[], float]
) -> Loss:
    """Runs the readers and writers of one stream until the first of them ends, or until `lost_at()`
    passes.

    `lost_at` is on time.monotonic and may move while this runs. All parts have ended on return.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await _first_end(tasks, lost_at)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_end(tasks: list[asyncio.Task[None]], lost_at: Callable[[], float]) -> Loss:
    deadline, lateness_s = lost_at(), 0.0
    while True:
        now = time.monotonic()
        if lost_at() != deadline:
            deadline, lateness_s = lost_at(), 0.0
        tick_s = min(deadline + lateness_s - now, _MAX_TICK_S)
        if tick_s <= 0:
            return Loss("the peer is silent")
        done, _ = await asyncio.wait(tasks, timeout=tick_s, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return min((_loss(task) for task in done), key=lambda loss: loss.code is None)
        # While this loop itself stood still, what the peer sent could not be read.
        lateness_s += max(0.0, time.monotonic() - now - tick_s)


def _loss(task: asyncio.Task[None]) -> Loss:
    if task.cancelled():  # how grpc.aio tells a reader that the call was closed under it
        return Loss("the stream was closed")
    error = task.exception()
    if error is None:
        return Loss("the peer ended the stream")
    if isinstance(error, grpc.aio.AioRpcError):
        return Loss(f"{error.code().name}: {error.details()}", error.code())
    if isinstance(error, asyncio.InvalidStateError):  # a write after the call's end
        return Loss("the stream ended while writing")
    log.error("a standing stream failed", exc_info=error)
    return Loss(f"{type(error).__name__}: {error}")
