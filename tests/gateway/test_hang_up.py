"""A client that hangs up while its answer is still being prepared: its place is free at once."""

import asyncio
import json
from dataclasses import replace

import pytest

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.grammar_checker import GrammarChecker
from tests.gateway.fake_router import FakeRouter, FakeView
from tests.gateway.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
GRAMMAR = {**CHAT, "structured_outputs": {"regex": "a+"}}


class SlowView(FakeView):
    """Its files come when they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_there = asyncio.Event()

    async def model_files(self, digest: str) -> dict[str, bytes]:
        await self.is_there.wait()
        return await super().model_files(digest)


class Client:
    """One request straight into the application; `gone` is its end of the connection."""

    def __init__(self, app, path: str, body: dict) -> None:
        self.gone = asyncio.Event()
        self.statuses: list[int] = []
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "http_version": "1.1",
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.asking = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict:
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    async def hang_up(self) -> None:
        self.gone.set()
        await asyncio.wait_for(self.asking, 5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/completions", {"model": "tiny", "prompt": "hi"}),
        ("/tokenize", {"model": "tiny", "prompt": "hi"}),
        ("/detokenize", {"model": "tiny", "tokens": [5]}),
    ],
)
async def test_while_the_tokenizer_is_loaded(path, body):
    view = SlowView()
    app = create_app(GatewayConfig(limit_concurrency=2), FakeRouter(), view)
    drain = app.state.gateway.drain
    leaves, stays = (Client(app, path, body) for _ in range(2))
    await until(lambda: drain.num_active == 2)
    await leaves.hang_up()
    assert drain.num_active == 1 and leaves.statuses == [499]
    view.is_there.set()  # who stayed is answered by the same load
    await asyncio.wait_for(stays.asking, 10)
    assert stays.statuses == [200] and view.num_fetches == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_while_its_grammar_is_tried(stream):
    app = create_app(GatewayConfig(), FakeRouter(), FakeView())
    checker = GrammarChecker(num_processes=0)  # no grammar's turn ever comes
    app.state.gateway = replace(app.state.gateway, grammars=checker)
    drain = app.state.gateway.drain
    client = Client(app, "/v1/chat/completions", {**GRAMMAR, "stream": stream})
    await until(lambda: bool(checker._running))
    assert drain.num_active == 1
    await client.hang_up()
    assert drain.num_active == 0 and client.statuses == [499]
    await checker.close()
