"""The edge of the HTTP port through a real server: heads that are too large or never end, bodies
that do not come, other origins, TLS, log lines."""

import asyncio
import json
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from gateway.app import create_app
from gateway.config import CorsConfig, GatewayConfig
from gateway.http_protocol import HeadLimits, guarded_protocol
from gateway.log_context import LOG_FORMAT, RequestIdFilter
from gateway.server import GatewayServer
from gateway.tls import TlsFiles, following
from tests.gateway.fake_router import FakeRouter, FakeView, says
from tests.gateway.waiting import until

HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
LIMITS = HeadLimits(max_bytes=4096, max_headers=40, timeout_s=0.2)


@asynccontextmanager
async def running(
    config: GatewayConfig | None = None,
    router: FakeRouter | None = None,
    view: FakeView | None = None,
    **settings: object,
) -> AsyncIterator[tuple[uvicorn.Config, int]]:
    app = create_app(config or GatewayConfig(), router or FakeRouter(), view or FakeView())
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_config = uvicorn.Config(
        app,
        http=guarded_protocol(LIMITS),
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=1,
        **settings,
    )
    server = GatewayServer(uvicorn_config, app.state.gateway.drain, 1.0)
    task = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        yield uvicorn_config, listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, 10)


async def raw(port: int, request: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["message"]


GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        GET + b"a: " + b"x" * 5000 + b"\r\n\r\n",  # whole, and too large
        GET + b"a: " + b"x" * 5000,  # one header without an end
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n",
        GET + b"".join(b"h%d: x\r\n" % number for number in range(60)) + b"\r\n",
    ],
)
async def test_heads_have_a_limit(head):
    async with running() as (_, port):
        status, message = error_of(await raw(port, head))
        assert status == 431
        assert "larger than the limit of" in message
        assert b"200 OK" in await raw(port, GET + b"connection: close\r\n\r\n")


async def test_a_second_request_on_a_connection_is_limited_too():
    async with running() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"\r\n")
        assert (await reader.read(65536)).startswith(b"HTTP/1.1 200")
        writer.write(GET + b"a: " + b"x" * 9000)
        async with asyncio.timeout(10):
            status, _ = error_of(await reader.read())
        writer.close()
    assert status == 431


async def test_a_head_that_does_not_end_is_given_up():
    async with running() as (_, port):
        status, message = error_of(await raw(port, GET + b"a: x"))
    assert status == 408
    assert "0.2 s" in message


async def test_a_body_that_does_not_come_is_given_up():
    async with running(GatewayConfig(body_timeout_s=0.1)) as (_, port):
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        status, message = error_of(await raw(port, head + b"content-length: 50\r\n\r\n{"))
    assert status == 408
    assert "nothing came for 0.1 s" in message


async def test_what_is_no_http_gets_the_usual_error():
    async with running() as (_, port):
        status, _ = error_of(await raw(port, b"\x16\x03\x01 nonsense\r\n\r\n"))
    assert status == 400


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_an_answer_that_nobody_takes_is_thrown_away(connection):
    view = FakeView()
    view.exposition = b"# " + b"x" * 2**24 + b"\n"  # more than the system buffers
    async with running(view=view, timeout_keep_alive=1) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        head = f"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\n\r\n"
        writer.write(head.encode())
        await reader.readexactly(100)
        await asyncio.sleep(2)  # the client does something else
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            async with asyncio.timeout(10):
                await reader.readexactly(2**24)
        writer.close()


async def test_an_answer_may_take_longer_than_its_request_may():
    router = FakeRouter(says("hello", ends=False))
    async with running(GatewayConfig(body_timeout_s=0.05), router) as (_, port):
        body = json.dumps({**HI, "stream": True}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        )
        sending = asyncio.create_task(
            raw(port, head + b"content-length: %d\r\n\r\n" % len(body) + body)
        )
        await until(lambda: bool(router.streams) and router.streams[0].waits.is_set())
        await asyncio.sleep(LIMITS.timeout_s + 0.1)  # both deadlines have passed
        assert not sending.done() and not router.streams[0].is_aborted
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_requests_at_once_are_limited():
    router = FakeRouter(says("hello", ends=False))
    async with (
        running(GatewayConfig(limit_concurrency=1), router) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        first = asyncio.create_task(client.post("/v1/chat/completions", json=HI))
        await until(lambda: bool(router.streams))
        refused = await client.post("/v1/chat/completions", json=HI)
        assert (await client.get("/readyz")).status_code == 200
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"


# Other origins.

ORIGIN = {"origin": "https://page.example"}
PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def client_of(config: GatewayConfig) -> httpx.AsyncClient:
    app = create_app(config, FakeRouter(), FakeView())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


async def test_pages_of_all_origins_may_call_by_default_but_need_the_key():
    async with client_of(GatewayConfig(api_keys=("sk",))) as client:
        preflight = await client.options("/v1/chat/completions", headers=PREFLIGHT)
        refused = await client.post("/v1/chat/completions", json=HI, headers=ORIGIN)
        headers = {**ORIGIN, "authorization": "Bearer sk"}
        answer = await client.post("/v1/chat/completions", json=HI, headers=headers)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert refused.status_code == 401
    for one in (refused, answer):  # a script must be able to read either
        assert one.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in one.headers["access-control-expose-headers"]


async def test_origins_may_be_named():
    cors = CorsConfig(("https://page.example",), allow_credentials=True)
    async with client_of(GatewayConfig(cors=cors)) as client:
        known = await client.get("/v1/models", headers=ORIGIN)
        other = await client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert known.headers["access-control-allow-origin"] == "https://page.example"
    assert known.headers["access-control-allow-credentials"] == "true"
    assert "access-control-allow-origin" not in other.headers


# TLS.

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")


def make_certificate(folder, name: str) -> TlsFiles:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN={name} -addext subjectAltName=DNS:{name},IP:127.0.0.1 "
        f"-keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=30)
    return TlsFiles(str(key), str(certificate), str(certificate), ssl.CERT_NONE)


def trusting(files: TlsFiles) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files.certificate)


@openssl
async def test_answers_come_through_tls(tmp_path):
    files = make_certificate(tmp_path, "localhost")
    async with (
        running(**files.uvicorn_settings()) as (_, port),
        httpx.AsyncClient(verify=trusting(files), base_url=f"https://127.0.0.1:{port}") as client,
    ):
        whole = await client.post("/v1/chat/completions", json=HI)
        stream = await client.post("/v1/chat/completions", json={**HI, "stream": True})
        with pytest.raises(httpx.HTTPError):
            await httpx.AsyncClient().get(f"http://127.0.0.1:{port}/livez")
    assert whole.status_code == 200
    assert stream.text.endswith("data: [DONE]\n\n")


@openssl
async def test_clients_may_have_to_show_a_certificate(tmp_path):
    files = make_certificate(tmp_path, "localhost")
    settings = {**files.uvicorn_settings(), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    with_certificate = trusting(files)
    with_certificate.load_cert_chain(files.certificate, files.key)
    async with running(**settings) as (_, port):
        url = f"https://127.0.0.1:{port}/livez"
        with pytest.raises(httpx.HTTPError):
            async with httpx.AsyncClient(verify=trusting(files)) as client:
                await client.get(url)
        async with httpx.AsyncClient(verify=with_certificate) as client:
            assert (await client.get(url)).status_code == 200


def served_certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


@openssl
async def test_a_renewed_certificate_is_taken_without_a_restart(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    files = make_certificate(tmp_path, "localhost")
    async with (
        running(**files.uvicorn_settings()) as (config, port),
        following(files, config, 0.01),
    ):
        first = await asyncio.to_thread(served_certificate, port)
        make_certificate(tmp_path, "localhost")
        await until(lambda: "certificate read" in caplog.text)
        second = await asyncio.to_thread(served_certificate, port)
    assert first != second
    assert second == (tmp_path / "certificate.pem").read_text()


# Log lines.


async def test_every_log_line_of_a_request_names_it():
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Kept()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    router = FakeRouter()
    logger = logging.getLogger("gateway.some.library")

    async def start(request: object) -> object:
        logger.warning("something happened")
        raise RuntimeError("a bug")

    router.start = start
    logging.getLogger().addHandler(handler)
    try:
        app = create_app(GatewayConfig(), router, FakeView())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            await client.post("/v1/chat/completions", json=HI, headers={"x-request-id": "trace-42"})
        logger.warning("nobody's line")
    finally:
        logging.getLogger().removeHandler(handler)
    of_request = [line for line in lines if "request_id=trace-42" in line.splitlines()[0]]
    assert len(of_request) == 2  # the library's, and the failure with its traceback
    assert all(line.count("request_id=trace-42") == 1 for line in of_request)
    assert "request_id" not in next(line for line in lines if "nobody's" in line)
