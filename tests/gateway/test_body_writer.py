"""Frames past the ASGI layers, under a real uvicorn; and bounded where the client does not read."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn

from gateway.body_writer import BodyWriter, DirectHttpProtocol, TransportWriter, body_writer
from tests.gateway.waiting import until

Write = Callable[[BodyWriter], Awaitable[None]]
FRAME = b"x" * 32_768
WAIT_S = 20.0


@asynccontextmanager
async def serving(write: Write) -> AsyncIterator[int]:
    """The port of a server that answers with what `write` writes, and `end`."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await write(body_writer(scope, send))
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=DirectHttpProtocol, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, WAIT_S)


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
    return reader, writer


def dechunked(raw: bytes) -> list[bytes]:
    """The chunks of a response's body."""
    body = raw.partition(b"\r\n\r\n")[2]
    chunks = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return chunks


async def test_each_frame_is_a_chunk_written_within_the_call():
    async def write(writer: BodyWriter) -> None:
        assert isinstance(writer, TransportWriter)
        assert writer.try_write(b"one") and writer.try_write(b"two")

    async with serving(write) as port:
        reader, writer = await ask(port)
        async with asyncio.timeout(WAIT_S):
            raw = await reader.read()
        writer.close()
    assert dechunked(raw) == [b"one", b"two", b"end", b""]


async def test_a_client_that_does_not_read_stops_the_writing_until_it_does():
    num_written = 0
    paused, drained = asyncio.Event(), asyncio.Event()

    async def write(writer: BodyWriter) -> None:
        nonlocal num_written
        goes_on = True
        while goes_on:
            goes_on = writer.try_write(FRAME)
            num_written += 1
            await asyncio.sleep(0)
        paused.set()
        await writer.drained()
        drained.set()

    async with serving(write) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            await asyncio.wait_for(paused.wait(), WAIT_S)
            await asyncio.sleep(0.05)
            assert not drained.is_set()
            client.settimeout(WAIT_S)
            raw = await asyncio.to_thread(_read_all, client)
        await asyncio.wait_for(drained.wait(), WAIT_S)
    assert dechunked(raw) == [FRAME] * num_written + [b"end", b""]


def _read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


async def test_a_client_that_hangs_up_ends_the_wait():
    left = asyncio.Event()

    async def write(writer: BodyWriter) -> None:
        while writer.try_write(FRAME):  # noqa: ASYNC110 - the socket's buffer has no event
            await asyncio.sleep(0)
        await writer.drained()
        writer.try_write(b"nobody takes it")
        left.set()

    async with serving(write) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
            await asyncio.sleep(0.1)
        await asyncio.wait_for(left.wait(), WAIT_S)


async def test_under_another_server_frames_wait_to_be_sent():
    sent = []

    async def send(message):
        sent.append(message)

    writer = body_writer({"type": "http"}, send)
    assert not writer.try_write(b"one")
    assert not writer.try_write(b"two")
    assert sent == []
    await writer.drained()
    await writer.drained()
    assert sent == [{"type": "http.response.body", "body": b"onetwo", "more_body": True}]
