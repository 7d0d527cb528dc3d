"""A real uvicorn on a free port with OpenAI's own client, and the graceful end."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI

from gateway.__main__ import config_from_args, listening_socket, parse_args
from gateway.app import create_app
from gateway.body_writer import DirectHttpProtocol
from gateway.config import GatewayConfig
from gateway.errors import EngineError
from gateway.server import GatewayServer
from gateway.tokens import TokenDelta
from tests.gateway.fake_router import FakeRouter, FakeStream, FakeView, ids_of, says
from tests.gateway.waiting import until

HI = [{"role": "user", "content": "hi"}]


class Running:
    def __init__(self, server: GatewayServer, url: str, task: "asyncio.Task[None]") -> None:
        self.server = server
        self.url = url
        self.task = task


@asynccontextmanager
async def running(
    router: FakeRouter, config: GatewayConfig | None = None, shutdown_timeout_s: float = 5.0
) -> AsyncIterator[Running]:
    app = create_app(config or GatewayConfig(), router, FakeView())
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(
        app, http=DirectHttpProtocol, ws="none", log_config=None, timeout_graceful_shutdown=1
    )
    server = GatewayServer(settings, app.state.gateway.drain, shutdown_timeout_s)
    task = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        yield Running(server, f"http://127.0.0.1:{listener.getsockname()[1]}", task)
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, 10)


def openai_client(url: str, key: str = "sk-any") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=10)


async def test_openai_client_chats():
    async with running(FakeRouter()) as gateway, openai_client(gateway.url) as client:
        answer = await client.chat.completions.create(
            model="tiny", messages=HI, logprobs=True, top_logprobs=1
        )
    assert answer.choices[0].message.content == "hello world"
    assert answer.choices[0].logprobs.content[0].token == "hello"
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer._request_id


async def test_openai_client_streams():
    async with running(FakeRouter()) as gateway, openai_client(gateway.url) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "hello world"
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


async def test_openai_client_completes_and_streams_text():
    async with running(FakeRouter()) as gateway, openai_client(gateway.url) as client:
        whole = await client.completions.create(model="tiny", prompt=["a", "b"], n=2)
        stream = await client.completions.create(model="tiny", prompt="a", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert [choice.text for choice in whole.choices] == ["hello world"] * 4
    assert text == "hello world"


async def test_openai_client_lists_models():
    async with running(FakeRouter()) as gateway, openai_client(gateway.url) as client:
        assert [model.id async for model in client.models.list()] == ["tiny", "org/tiny-alias"]
        assert (await client.models.retrieve("org/tiny-alias")).id == "org/tiny-alias"


async def test_openai_client_raises_its_own_errors():
    config = GatewayConfig(api_keys=("sk-good",))
    async with running(FakeRouter(), config) as gateway:
        async with openai_client(gateway.url, "sk-bad") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with openai_client(gateway.url, "sk-good") as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="no", messages=HI)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.chat.completions.create(model="tiny", messages=HI, temperature=9)
            assert wrong.value.param == "temperature"


async def test_openai_client_raises_on_an_error_in_the_stream():
    router = FakeRouter(lambda request: [[TokenDelta(ids_of("hello"))], EngineError("lost")])
    async with running(router) as gateway, openai_client(gateway.url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="lost"):
            async for _ in stream:
                pass


async def test_a_closed_connection_frees_its_stream():
    router = FakeRouter(says("hello", ends=False))
    async with running(router) as gateway, openai_client(gateway.url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await until(lambda: router.streams[0].is_aborted)


async def test_sixty_four_streams_at_once_give_each_its_text():
    router = FakeRouter(says("hello world the cat sat on the mat"))
    async with running(router) as gateway, openai_client(gateway.url) as client:

        async def ask() -> str:
            stream = await client.chat.completions.create(
                model="tiny", messages=HI, stream=True, max_tokens=50
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(ask() for _ in range(64)))
    assert set(texts) == {"hello world the cat sat on the mat"}


class Gate(FakeStream):
    """A stream whose second half waits until it is opened."""

    def __init__(self) -> None:
        super().__init__([[TokenDelta(ids_of("hello"))]])

    def open(self) -> None:
        self.script.append([TokenDelta(ids_of(" world"), "length")])
        self.bring()


class GateRouter(FakeRouter):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    async def start(self, request):
        return self.gate


async def test_shutdown_lets_streams_finish_and_refuses_new_ones():
    router = GateRouter()
    async with running(router) as gateway, openai_client(gateway.url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        await anext(aiter(stream))
        gateway.server.handle_exit(signal.SIGTERM, None)
        async with httpx.AsyncClient(base_url=gateway.url) as plain:
            await until(lambda: gateway.server.is_draining)
            assert (await plain.get("/readyz")).status_code == 503
            body = {"model": "tiny", "messages": HI}
            refused = await plain.post("/v1/chat/completions", json=body)
            assert refused.status_code == 503
            assert (await plain.get("/livez")).status_code == 200
        router.gate.open()
        rest = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert rest.endswith(" world")
        await asyncio.wait_for(asyncio.shield(gateway.task), 5)


async def test_shutdowns_deadline_ends_streams_with_an_error():
    router = GateRouter()
    async with running(router, shutdown_timeout_s=0.05) as gateway:
        async with openai_client(gateway.url) as client:
            stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
            gateway.server.handle_exit(signal.SIGTERM, None)
            with pytest.raises(openai.APIError, match="shut down"):
                async for _ in stream:
                    pass
        await asyncio.wait_for(asyncio.shield(gateway.task), 5)
    assert router.gate.is_aborted


async def test_a_second_signal_stops_at_once():
    router = GateRouter()
    async with (
        running(router, shutdown_timeout_s=60) as gateway,
        openai_client(gateway.url) as client,
    ):
        await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        gateway.server.handle_exit(signal.SIGTERM, None)
        gateway.server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(asyncio.shield(gateway.task), 10)


async def test_the_process_serves_and_ends_with_status_zero():
    """The real command, with no cluster behind it: alive, not ready, and gone at SIGTERM."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--scheduler", "127.0.0.1:9"),
        *("--fd", str(listener.fileno()), "--log-level", "warning"),
        pass_fds=[listener.fileno()],
        env={**os.environ, "SHOAL_API_KEY": "sk-a, sk-b"},
    )
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/v1/models")).status_code == 401
            key = {"authorization": "Bearer sk-b"}
            assert json.loads((await client.get("/v1/models", headers=key)).text)["data"] == []
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        listener.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_arguments_become_the_configuration():
    args = parse_args(
        ["--scheduler", "a:1", "--api-key", "one", "--api-key", "two", "--max-logprobs", "5"]
    )
    config = config_from_args(args, "two, three,")
    assert config.api_keys == tuple(
        f"sha256:{hashlib.sha256(key).hexdigest()}" for key in (b"one", b"two", b"three")
    )
    assert config.max_logprobs == 5


def test_two_listeners_may_share_a_port():
    first = listening_socket(
        parse_args(["--scheduler", "a:1", "--host", "127.0.0.1", "--port", "0", "--reuse-port"])
    )
    port = first.getsockname()[1]
    arguments = ["--scheduler", "a:1", "--host", "127.0.0.1", "--port", str(port), "--reuse-port"]
    second = listening_socket(parse_args(arguments))
    assert second.getsockname() == first.getsockname()
    first.close()
    second.close()
