"""Clients that cost next to nothing: one kept connection each, the same request again and again.

They look only for the end of an answer in its bytes. For measurements of a server that shares its
cores with them; what counts tokens and times is `benchmarks.load`.
"""

import asyncio
from collections.abc import Iterator
from functools import partial

_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_TIMEOUT_S = 300.0


class _Client(asyncio.Protocol):
    """Sends one request after another until `turns` is used up, then closes."""

    def __init__(self, request: bytes, turns: Iterator[int], done: asyncio.Future[None]) -> None:
        self._request = request
        self._turns = turns
        self._done = done
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-len(_END) :]
        if self._tail == _END:
            self._tail = b""
            self._next()
        elif b"HTTP/1.1 " in data and b"HTTP/1.1 200 " not in data:
            self._fail(RuntimeError(f"the server answered {data[:500]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))

    def _next(self) -> None:
        assert self._transport is not None
        if next(self._turns, None) is None:
            if not self._done.done():
                self._done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(self._request)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


async def run_clients(port: int, num_clients: int, request: bytes, num_requests: int) -> None:
    """Raises: RuntimeError on another status than 200, ConnectionError, TimeoutError."""
    loop = asyncio.get_running_loop()
    turns = iter(range(num_requests))
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(num_clients)]
    for end in ends:
        make_client = partial(_Client, request, turns, end)
        await loop.create_connection(make_client, "127.0.0.1", port)
    async with asyncio.timeout(_TIMEOUT_S):
        await asyncio.gather(*ends)
