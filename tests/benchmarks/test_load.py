"""The load generator counts what a server streams, however the bytes arrive."""

import asyncio
import json

import pytest
import uvloop

from benchmarks.load import Load, LoadResult, measure_load, run_load, stream_one

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text: str) -> bytes:
    return chunk(b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n")


def usage(num_tokens: int) -> bytes:
    event = {"choices": [], "usage": {"completion_tokens": num_tokens}}
    data = json.dumps(event, separators=(",", ":")).encode()
    return chunk(b"data: " + data + b"\n\n") + chunk(b"data: [DONE]\n\n") + chunk(b"")


async def load_on(answer: list[bytes], load: Load) -> LoadResult:
    """Against a server that writes these parts, each for itself."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in answer:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await run_load(f"http://127.0.0.1:{port}", "m", load)


def load(output_len: int, num_requests: int = 1) -> Load:
    return Load(num_requests, 2, 4, output_len, timeout_s=10)


def test_tokens_are_counted_and_timed() -> None:
    answer = [HEAD, token("a"), token("b") + token("c"), usage(3)]
    result = uvloop.run(load_on(answer, load(3, num_requests=4)))
    assert result.num_tokens == 12
    assert 0 < result.ttft_p50_s < 1
    assert result.itl_p99_s >= 0.004
    assert result.tokens_per_s == pytest.approx(12 / result.wall_s)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_parts_may_end_anywhere(size: int) -> None:
    data = HEAD + token("a") + token("b") + usage(2)
    answer = [data[i : i + size] for i in range(0, len(data), size)]
    assert uvloop.run(load_on(answer, load(2))).num_tokens == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([b"HTTP/1.1 503 Service Unavailable\r\n\r\nbusy"], "503 Service Unavailable"),
        ([HEAD, token("a")], "ended without"),
        ([HEAD, token("a"), usage(1)], "1 tokens came instead of 2"),
    ],
    ids=["refused", "cut", "too few"],
)
def test_a_failed_request_fails_the_measurement(answer: list[bytes], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        uvloop.run(load_on(answer, load(2)))


def test_a_silent_server_meets_the_time_limit() -> None:
    async def silent() -> None:
        server = await asyncio.start_server(lambda *_: asyncio.sleep(10), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await run_load(f"http://127.0.0.1:{port}", "m", Load(1, 1, 4, 2, timeout_s=0.2))

    with pytest.raises(TimeoutError):
        uvloop.run(silent())


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(OSError):
        measure_load("http://127.0.0.1:9", "m", load(1))
    with pytest.raises(OSError):
        uvloop.run(stream_one("http://127.0.0.1:9", "m", [1], 1))
