"""The short way gives what FastAPI's way gives, and takes only what is right."""

from dataclasses import replace

import httpx
import msgspec
import pytest

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.direct_routes import DirectLayer, direct_routes
from gateway.routes import chat, completions
from tests.gateway.fake_router import FakeRouter, FakeView

TEXT = {"model": "tiny", "prompt": "hello the"}
HEADERS = {"x-request-id": "abc"}


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_700_000_123.9)


async def ask_twice(client: httpx.AsyncClient, body: bytes) -> list[httpx.Response]:
    """Directly, and past the direct layer, which takes no other name for JSON."""
    return [
        await client.post(
            "/v1/completions", content=body, headers={**HEADERS, "content-type": kind}
        )
        for kind in ("application/json; charset=utf-8", "application/vnd.openai+json")
    ]


@pytest.mark.parametrize(
    "body",
    [
        {**TEXT, "max_tokens": 5},
        {**TEXT, "stream": True, "n": 2},
        {**TEXT, "max_tokens": 0},
        {**TEXT, "model": "unknown"},
        {**TEXT, "temperature": "hot"},
        {**TEXT, "prompt": [1, 2, 100_000]},
    ],
    ids=["whole", "stream", "broken rule", "unknown model", "wrong type", "wrong id"],
)
async def test_both_ways_answer_alike(client, body):
    direct, usual = await ask_twice(client, msgspec.json.encode(body))
    assert direct.status_code == usual.status_code
    assert direct.content == usual.content


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff", b"[" * 100_000])
async def test_what_is_no_request_is_refused_alike(client, body):
    direct, usual = await ask_twice(client, body)
    assert direct.status_code == usual.status_code == 400
    assert direct.json() == usual.json()


async def test_only_what_is_no_right_json_body_reaches_the_application_behind(app):
    routes = direct_routes(chat.router, completions.router)
    assert set(routes) >= {"/v1/chat/completions", "/v1/completions"}
    direct = routes["/v1/completions"]
    body = msgspec.json.encode(TEXT)
    assert direct.try_parse(body, "application/json") is not None
    assert direct.try_parse(body, "text/plain") is None
    behind = []

    async def usual(scope, receive, send):
        behind.append((await receive())["body"])

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        raise AssertionError("nothing is to be sent")

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "app": app}
    await DirectLayer(usual, routes)({**scope, "headers": []}, receive, send)
    await DirectLayer(usual, routes)({**scope, "path": "/other", "headers": []}, receive, send)
    assert behind == [body, body]


async def test_the_way_is_as_short_behind_a_prefix(app):
    answered = []

    async def usual(scope, receive, send):
        raise AssertionError("took the long way")

    async def receive():
        return {"type": "http.request", "body": msgspec.json.encode(TEXT), "more_body": False}

    async def send(message):
        raise AssertionError("nothing is to be sent")

    async def endpoint(body, request):
        async def response(scope, receive, send):
            answered.append(body.prompt)

        return response

    [route] = direct_routes(completions.router).values()
    routes = {"/v1/completions": replace(route, endpoint=endpoint)}
    scope = {"type": "http", "method": "POST", "path": "/llm/v1/completions", "app": app}
    headers = [(b"content-type", b"application/json")]
    layer = DirectLayer(usual, routes)
    await layer({**scope, "root_path": "/llm", "headers": headers}, receive, send)
    assert answered == [TEXT["prompt"]]


async def test_a_body_that_comes_in_parts_is_one(app):
    parts = [b'{"model": "tiny", ', b'"prompt": ', b'"hello the"}']
    transport = httpx.ASGITransport(app=app)

    async def content():
        for part in parts:
            yield part

    async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/completions", content=content(), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == "hello world"


async def test_a_body_past_the_limit_is_refused_in_the_middle():
    app = create_app(GatewayConfig(max_body_bytes=20), FakeRouter(), FakeView())

    async def content():
        yield b'{"model": "tiny", "pro'
        yield b'mpt": "hello"}'

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://g"
    ) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/completions", content=content(), headers=headers)
    assert answer.status_code == 413
    assert "20 bytes" in answer.json()["error"]["message"]


async def test_direct_requests_are_counted_under_their_route(client):
    await client.post("/v1/completions", json=TEXT)
    text = (await client.get("/metrics")).text
    assert 'http_requests_total{method="POST",route="/v1/completions",status="200"} 1.0' in text
