"""A request's token streams as one source of deltas: one is read as it is, several at once.

Generation reads it and says which choices it has done with; nothing here looks into a delta but for
its end.
"""

import asyncio
from typing import Protocol

from gateway.tokens import TokenDelta, TokenStream


class DeltaSource(Protocol):
    """The deltas of a request's streams, with the index of their choice."""

    async def read(self) -> list[tuple[int, list[TokenDelta]]]: ...

    def stop(self, index: int) -> None:
        """Nothing more is wanted of this stream."""
        ...

    async def close(self) -> None: ...


class OneSource:
    """The usual case: no task and no queue between the stream and its reader."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream

    async def read(self) -> list[tuple[int, list[TokenDelta]]]:
        return [(0, await self._stream.read())]

    def stop(self, index: int) -> None:
        pass

    async def close(self) -> None:
        pass


class ManySource:
    """Several streams read at once, one task each."""

    def __init__(self, streams: list[TokenStream]) -> None:
        self._arrived: list[tuple[int, list[TokenDelta]]] = []
        self._ready = asyncio.Event()
        self._error: BaseException | None = None
        self._tasks = [
            asyncio.create_task(self._pull(index, stream)) for index, stream in enumerate(streams)
        ]
        for task in self._tasks:
            task.add_done_callback(self._on_done)

    async def read(self) -> list[tuple[int, list[TokenDelta]]]:
        await self._ready.wait()
        if self._error is not None:
            raise self._error
        self._ready.clear()
        arrived, self._arrived = self._arrived, []
        return arrived

    def stop(self, index: int) -> None:
        self._tasks[index].cancel()

    async def close(self) -> None:
        await settle(self._tasks)

    async def _pull(self, index: int, stream: TokenStream) -> None:
        is_finished = False
        while not is_finished:
            deltas = await stream.read()
            self._arrived.append((index, deltas))
            self._ready.set()
            is_finished = deltas[-1].finish_reason is not None

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()
            self._ready.set()


async def settle(tasks: "list[asyncio.Task[TokenStream]] | list[asyncio.Task[None]]") -> None:
    """Cancels what still runs and waits for all; their errors are looked at elsewhere."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
