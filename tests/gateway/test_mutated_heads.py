"""Mutated request heads, byte by byte through the HTTP protocol of the port: an answer, a 4xx or a
closed connection, and nothing left behind.

The transport keeps what is written, so that tens of thousands of connections cost seconds; the few
over real sockets are in test_edge.py. Deterministic: a case is its number.
"""

import asyncio
import gc
import json
import logging
import re
from random import Random

import psutil
import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.http_protocol import HeadLimits, guarded_protocol
from tests.gateway.fake_router import FakeView, says
from tests.gateway.test_mutations import ForgetfulRouter
from tests.gateway.waiting import until

_TEXT_BODY = b'{"model": "tiny", "prompt": "hi"}'
_CHAT_BODY = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true}'
HEADS = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"connection: close\r\nx-request-id: one\r\ncontent-length: 33\r\n\r\n" + _TEXT_BODY,
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nauthorization: Bearer k\r\n"
    b"content-type: application/json; charset=utf-8\r\nX-Vllm-Priority: 3\r\nconnection: close\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_CHAT_BODY), _CHAT_BODY),
    b"GET /v1/models?x=%C3%A9&y HTTP/1.1\r\nhost: [::1]:8000\r\naccept: */*\r\ncookie: a=b; c=d\r\n"
    b"origin: http://page\r\nconnection: close\r\n\r\n",
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: http://page\r\n"
    b"access-control-request-method: POST\r\nconnection: close\r\n\r\n",
    b"POST /tokenize HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: 33\r\n\r\n"
    + _TEXT_BODY,
)
ODD_BYTES = (
    *(b"", b"\x00", b"\r\n", b"\n\n", b" ", b":", b"\xff", b"\xc3\xa9", b"HTTP/9.9", b"\x7f"),
    *(b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n", b"a" * 5000, b"\t", b"%zz"),
    *(b"expect: 100-continue\r\n", b"upgrade: h2c\r\nconnection: upgrade\r\n", b"PRI * HTTP/2.0"),
    *(b"content-length: -1\r\n", b"content-length: 99999999999999999999\r\n", b"0\r\n\r\n", b";"),
    *(b"host: \r\nhost: y\r\n", b"\r\n continued", b"GET / HTTP/1.1\r\n\r\n", b"//", b"../", b"?#"),
    *(b"x-h: y\r\n" * 60, b"fffffffffffffffff\r\n", b"\r", b"content-encoding: gzip\r\n"),
)
LIMITS = HeadLimits(max_bytes=4096, max_headers=40, timeout_s=0.2)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")
_AT_ONCE = 1250


def mutated(random: Random) -> list[bytes]:
    """What arrives, in the pieces that it arrives in."""
    data = random.choice(HEADS)
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(data))
        data = data[:place] + random.choice(ODD_BYTES) + data[place + random.randrange(4) :]
    places = sorted(random.choices(range(len(data) + 1), k=random.choice((0, 0, 1, 3))))
    pieces = [data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True)]
    return [piece for piece in pieces if piece]  # as from a socket


class MemoryTransport(asyncio.Transport):
    """One connection's other end."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = bytearray()
        self.closed = asyncio.Event()
        self._protocol = protocol
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed.is_set()
        self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._end)

    abort = close

    def _end(self) -> None:
        self._protocol.connection_lost(None)
        self.closed.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Uvicorn does so once a body is larger than its buffer."""

    def resume_reading(self) -> None:
        pass


class Port:
    """The gateway behind its protocol class, without a socket."""

    def __init__(self) -> None:
        config = GatewayConfig(body_timeout_s=0.2)
        app = create_app(config, ForgetfulRouter(says("hello")), FakeView())
        self.drain = app.state.gateway.drain
        self.state = ServerState()
        self._config = uvicorn.Config(
            app,
            http=guarded_protocol(LIMITS),
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=1,
        )
        self._config.load()

    def connect(self) -> tuple[asyncio.Protocol, "MemoryTransport"]:
        protocol = self._config.http_protocol_class(
            config=self._config, server_state=self.state, app_state={}
        )
        transport = MemoryTransport(protocol)
        protocol.connection_made(transport)
        return protocol, transport

    async def answer_to(self, pieces: list[bytes]) -> bytes:
        """Everything that is written until the connection is closed."""
        protocol, transport = self.connect()
        for piece in pieces:
            if not transport.is_closing():
                protocol.data_received(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await transport.closed.wait()
        return bytes(transport.written)

    async def send(self, numbers: range) -> set[int]:
        """The statuses that came; none of them is a failure of ours."""
        found: set[int] = set()
        for first in range(numbers.start, numbers.stop, _AT_ONCE):
            some = range(first, min(first + _AT_ONCE, numbers.stop))
            cases = [mutated(Random(number)) for number in some]
            answers = await asyncio.gather(*map(self.answer_to, cases))
            for number, answer in zip(some, answers, strict=True):
                found |= statuses(number, answer)
        return found


def statuses(number: int, answer: bytes) -> set[int]:
    """Of all answers on a connection."""
    assert not answer or answer.startswith(b"HTTP/1.1 "), (number, answer)
    found = {int(status) for status in _STATUS.findall(answer)}
    assert all(status < 500 for status in found), (number, answer)
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\ncontent-type: application/json" in head and head[9:10] == b"4":
        length = int(re.findall(rb"content-length: (\d+)", head)[0])
        error = json.loads(body[:length])["error"]
        assert set(error) == {"message", "type", "param", "code"}, (number, answer)
    return found


@pytest.fixture(autouse=True)
def quiet():
    """Uvicorn warns of each request that is no HTTP, and pytest would keep all of it."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def test_ten_thousand_mutated_heads_are_answered_or_refused_and_leave_nothing():
    port = Port()
    found = await port.send(range(2_500))
    before = resident_bytes()
    found |= await port.send(range(2_500, 10_000))
    # A request whose connection was closed ends a turn of the loop later.
    await until(lambda: not port.state.tasks)
    grown = resident_bytes() - before
    assert grown < 20_000_000, f"{grown} bytes more"
    assert {200, 400, 404, 405, 408, 431} <= found, found
    assert port.drain.num_active == 0 and not port.state.connections


@pytest.mark.parametrize("head", HEADS[:3])
async def test_heads_that_are_right_are_answered(head):
    answer = await Port().answer_to([head])
    assert answer.startswith(b"HTTP/1.1 200"), answer


@pytest.mark.parametrize("rest", [b"\r\n", b"\r\n\r\n", b"\n"])
async def test_empty_lines_after_an_answer_do_not_keep_a_connection(rest):
    protocol, transport = Port().connect()
    protocol.data_received(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    await until(lambda: bool(transport.written))
    protocol.data_received(rest)
    async with asyncio.timeout(10):
        await transport.closed.wait()


async def test_heads_are_answered_alike_however_they_arrive():
    port = Port()
    for head in HEADS[:4]:
        pieces = [head[place : place + 1] for place in range(len(head))]
        whole, cut = await port.answer_to([head]), await port.answer_to(pieces)
        assert whole[:15] == cut[:15]
