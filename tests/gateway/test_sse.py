"""The stream's bytes, exactly: clients parse frames, proxies pass them on."""

import asyncio

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.errors import EngineError, OverloadedError
from gateway.sse import ClientDisconnected, until_disconnect
from gateway.tokens import TokenDelta
from tests.gateway.fake_router import FakeRouter, FakeView, ids_of, says
from tests.gateway.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
TEXT = {"model": "tiny", "prompt": "hello", "stream": True}
HEADERS = {"x-request-id": "abc"}


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_700_000_123.9)


async def frames(client: httpx.AsyncClient, path: str, body: dict[str, object]) -> list[bytes]:
    response = await client.post(path, json=body, headers=HEADERS)
    assert response.status_code == 200, response.text
    assert response.content.endswith(b"\n\n")
    return response.content.removesuffix(b"\n\n").split(b"\n\n")


CHAT_HEAD = (
    b'data: {"id":"chatcmpl-abc","object":"chat.completion.chunk","created":1700000123,'
    b'"model":"tiny","system_fingerprint":"fp_d1ge57d1ge57","choices":'
)
USAGE = (
    b'"usage":{"prompt_tokens":15,"completion_tokens":3,"total_tokens":18,'
    b'"prompt_tokens_details":{"cached_tokens":3}}}'
)


async def test_chat_stream_byte_for_byte(client):
    body = {**CHAT, "stream_options": {"include_usage": True}}
    assert await frames(client, "/v1/chat/completions", body) == [
        CHAT_HEAD + b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        b'"finish_reason":null}]}',
        CHAT_HEAD + b'[{"index":0,"delta":{"content":"hello"},"logprobs":null,'
        b'"finish_reason":null}]}',
        CHAT_HEAD + b'[{"index":0,"delta":{"content":" world"},"logprobs":null,'
        b'"finish_reason":null}]}',
        CHAT_HEAD + b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop",'
        b'"stop_reason":null}]}',
        CHAT_HEAD + b"[]," + USAGE,
        b"data: [DONE]",
    ]


async def test_text_stream_byte_for_byte(client):
    head = CHAT_HEAD.replace(b"chatcmpl", b"cmpl").replace(
        b"chat.completion.chunk", b"text_completion"
    )
    assert await frames(client, "/v1/completions", {**TEXT, "max_tokens": 2}) == [
        head + b'[{"index":0,"text":"hello","logprobs":null,"finish_reason":null}]}',
        head + b'[{"index":0,"text":" world","logprobs":null,"finish_reason":"length",'
        b'"stop_reason":null}]}',
        b"data: [DONE]",
    ]


async def test_first_token_without_text_is_a_sign_of_life(client, router):
    begin, hello = ids_of("<s>")[0], ids_of("hello")[0]
    router.script = lambda request: [
        [TokenDelta([begin])],
        [TokenDelta([begin])],
        [TokenDelta([hello], "length")],
    ]
    chunks = (await frames(client, "/v1/completions", {**TEXT, "ignore_eos": True}))[:-1]
    texts = [msgspec.json.decode(chunk[6:])["choices"][0]["text"] for chunk in chunks]
    assert texts == ["", "hello"]


async def test_stream_headers(client):
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


async def test_text_is_escaped_as_json(client, router):
    text = 'a "b" \\ \n\t<é😀>'
    router.script = says(text)
    chunks = (await frames(client, "/v1/completions", {**TEXT, "max_tokens": 100}))[:-1]
    texts = [msgspec.json.decode(chunk[6:])["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == text


async def test_deltas_that_wait_come_in_one_frame(client, router):
    router.script = says("hello world the cat", group=3)
    chunks = await frames(client, "/v1/completions", TEXT)
    assert b'"text":"hello world the"' in chunks[0]
    assert len(chunks) == 3


async def test_running_usage_is_in_every_chunk(client):
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = (await frames(client, "/v1/chat/completions", {**CHAT, **options}))[:-1]
    counts = [msgspec.json.decode(chunk[6:])["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 1, 2, 3, 3]


async def test_token_ids_are_in_the_chunks_where_asked(client, router):
    chunks = await frames(client, "/v1/completions", {**TEXT, "return_token_ids": True})
    parsed = [msgspec.json.decode(chunk[6:]) for chunk in chunks[:-1]]
    ids = [id_ for chunk in parsed for id_ in chunk["choices"][0]["token_ids"]]
    assert ids == [*ids_of("hello world"), 1]
    assert parsed[0]["prompt_token_ids"] == router.request.prompt_token_ids
    assert "prompt_token_ids" not in parsed[1]


async def test_choices_are_told_apart(client, router):
    chunks = await frames(client, "/v1/chat/completions", {**CHAT, "n": 2})
    parsed = [msgspec.json.decode(chunk[6:])["choices"][0] for chunk in chunks[:-1]]
    for index in (0, 1):
        own = [choice for choice in parsed if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == "hello world"
        assert [choice["finish_reason"] for choice in own][-1] == "stop"


async def test_an_error_before_the_first_token_is_an_http_error(client, router):
    router.script = lambda request: [OverloadedError("full", retry_after_s=3)]
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["code"] == "overloaded"


async def test_an_error_in_the_stream_ends_it_with_the_error_object(client, router):
    delta = [TokenDelta(ids_of("hello"))]
    router.script = lambda request: [delta, EngineError("lost")]
    chunks = await frames(client, "/v1/completions", TEXT)
    assert chunks[1:] == [
        b'data: {"error":{"message":"lost","type":"server_error","param":null,"code":null}}',
        b"data: [DONE]",
    ]


async def test_a_bug_in_the_stream_ends_it_with_an_error(client, router, monkeypatch):
    router.script = lambda request: [[TokenDelta(ids_of("hello"))], ["no delta"]]
    chunks = await frames(client, "/v1/completions", TEXT)
    assert b'"error"' in chunks[1] and b"no delta" not in chunks[1]


class Caller:
    """An ASGI client that hangs up when told to."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, object]) -> None:
        self.body = msgspec.json.encode(body)
        self.hang_up = asyncio.Event()
        self.sent: list[dict[str, object]] = []
        self.blocked: asyncio.Event | None = None
        self._has_sent_body = False
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("gateway", 80),
            "client": ("client", 1),
        }
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, object]:
        if not self._has_sent_body:
            self._has_sent_body = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, object]) -> None:
        self.sent.append(message)
        if self.blocked is not None:
            await self.blocked.wait()


async def running_stream(router: FakeRouter, num: int = 1) -> None:
    await until(lambda: len(router.streams) == num)
    for stream in router.streams:
        await asyncio.wait_for(stream.waits.wait(), 5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": False}),
        ("/v1/chat/completions", {**CHAT, "n": 3}),
        ("/v1/completions", {**TEXT, "stream": False, "prompt": ["a", "b"]}),
    ],
    ids=["stream", "whole", "stream of three", "two prompts"],
)
async def test_a_client_that_leaves_frees_its_streams(app, router, path, body):
    router.script = says("hello world", ends=False)
    caller = Caller(app, path, body)
    await running_stream(router, body.get("n", 2 if isinstance(body.get("prompt"), list) else 1))
    caller.hang_up.set()
    await asyncio.wait_for(caller.task, 5)
    assert all(stream.is_aborted for stream in router.streams)
    assert app.state.gateway.drain.num_active == 0


async def test_a_client_that_leaves_before_the_first_token_frees_its_stream(app, router):
    router.script = lambda request: []
    caller = Caller(app, "/v1/chat/completions", CHAT)
    await running_stream(router)
    caller.hang_up.set()
    await asyncio.wait_for(caller.task, 5)
    assert router.streams[0].is_aborted
    assert caller.sent == []


async def test_a_client_that_reads_nothing_is_given_up():
    router = FakeRouter()
    app = create_app(GatewayConfig(stalled_client_timeout_s=0.02), router, FakeView())
    caller = Caller(app, "/v1/chat/completions", CHAT)
    caller.blocked = asyncio.Event()
    await until(lambda: bool(caller.sent))
    caller.blocked.set()
    caller.blocked = asyncio.Event()
    await asyncio.wait_for(caller.task, 5)
    assert router.streams[0].is_aborted


async def test_work_that_ends_leaves_no_watch_behind():
    async def receive() -> dict[str, object]:
        return await asyncio.Event().wait()

    async def work() -> int:
        return 7

    num_before = len(asyncio.all_tasks())
    assert await until_disconnect(receive, work()) == 7
    assert len(asyncio.all_tasks()) == num_before


async def test_work_of_a_client_that_left_is_cancelled():
    cancelled = asyncio.Event()

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ClientDisconnected):
        await until_disconnect(receive, work())
    assert cancelled.is_set()
