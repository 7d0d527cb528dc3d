"""A request's token streams as one source of deltas: one is read as it is, several together.

Generation takes from it and says which choices it has done with; nothing here looks into a delta.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from gateway.tokens import TokenDelta, TokenStream


class DeltaSource(Protocol):
    """The deltas of a request's streams, with the index of their choice."""

    def take(self) -> list[tuple[int, list[TokenDelta]]]:
        """What has come since the last call. Raises: APIError when a stream failed for good."""
        ...

    def stop(self, index: int) -> None:
        """Nothing more is wanted of this stream."""
        ...

    def close(self) -> None:
        """The listener hears nothing more."""
        ...


class OneSource:
    """The usual case: the listener hears of a token within the call that brought it."""

    def __init__(self, stream: TokenStream, listener: Callable[[], None]) -> None:
        self._stream = stream
        stream.listen(listener)

    def take(self) -> list[tuple[int, list[TokenDelta]]]:
        deltas = self._stream.take()
        return [(0, deltas)] if deltas else []

    def stop(self, index: int) -> None:
        self.close()

    def close(self) -> None:
        self._stream.listen(None)


class ManySource:
    """Several streams: their news of one step are told together, so that they leave together."""

    def __init__(self, streams: list[TokenStream], listener: Callable[[], None]) -> None:
        self._streams = streams
        self._listener = listener
        # In the order of their news; at first whatever came before anybody listened.
        self._ready = dict.fromkeys(range(len(streams)))
        self._loop = asyncio.get_running_loop()
        for index, stream in enumerate(streams):
            stream.listen(partial(self._on_news, index))

    def take(self) -> list[tuple[int, list[TokenDelta]]]:
        ready, self._ready = self._ready, {}
        arrived = [(index, self._streams[index].take()) for index in ready]
        return [(index, deltas) for index, deltas in arrived if deltas]

    def stop(self, index: int) -> None:
        self._streams[index].listen(None)

    def close(self) -> None:
        for stream in self._streams:
            stream.listen(None)

    def _on_news(self, index: int) -> None:
        if not self._ready:
            self._loop.call_soon(self._listener)
        self._ready[index] = None
