"""Tenants as clients meet them: limits, headers, what is theirs; and the bill at the end."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.errors import DeadlineError, EngineError, OverloadedError, UnavailableError
from gateway.tokens import TokenDelta
from tests.gateway.fake_router import FakeRouter, FakeView, ids_of, says
from tests.gateway.test_metrics import scrape, value
from tests.gateway.waiting import until

CHAT = "/v1/chat/completions"
HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
NUM_PROMPT = 15  # tokens that HI comes to


class World:
    def __init__(self, client: httpx.AsyncClient, router: FakeRouter, folder: Path) -> None:
        self.client = client
        self.router = router
        self._folder = folder

    async def ask(self, key: str = "sk-a", path: str = CHAT, **fields) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await self.client.post(path, json={**HI, **fields}, headers=headers)

    def usage(self) -> list[dict]:
        return [json.loads(line) for line in (self._folder / "usage.jsonl").open()]


@asynccontextmanager
async def world(folder: Path, *entries: dict, router: FakeRouter | None = None):
    """Entries get the keys sk-a, sk-b, ... and the names a, b, ..."""
    named = [
        {"name": letter, "key": f"sk-{letter}", **entry}
        for letter, entry in zip("abc", entries, strict=False)
    ]
    (folder / "keys.json").write_text(json.dumps({"keys": named}))
    router = router or FakeRouter()
    config = GatewayConfig(api_keys_file=folder / "keys.json", usage_log=folder / "usage.jsonl")
    app = create_app(config, router, FakeView())
    transport = httpx.ASGITransport(app=app)
    async with (
        app.state.tenancy.running(),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        yield World(client, router, folder)


async def test_requests_per_minute_end_in_a_429_with_advice(tmp_path):
    async with world(tmp_path, {"requests_per_minute": 2}, {}) as w:
        first = await w.ask()
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        await w.ask()
        refused = await w.ask()
        other = await w.ask("sk-b")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "requests"
    assert 1 <= int(refused.headers["retry-after"]) <= 121
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert other.status_code == 200
    assert "x-ratelimit-limit-requests" not in other.headers
    assert len(w.router.requests) == 3


async def test_tokens_are_charged_with_the_most_and_settled_with_the_truth(tmp_path):
    async with world(tmp_path, {"tokens_per_minute": 100}) as w:
        first = await w.ask(max_tokens=50)  # 15 + 3 of the 65 that it may come to
        assert first.json()["usage"]["total_tokens"] == 18
        # The header went out before the answer had settled the account.
        assert first.headers["x-ratelimit-remaining-tokens"] == "35"
        second = await w.ask(max_tokens=50)
        assert second.headers["x-ratelimit-remaining-tokens"] == str(100 - 18 - 65)
        refused = await w.ask(max_tokens=64)
    assert refused.status_code == 429
    assert refused.json()["error"]["message"].startswith(
        "Rate limit reached for 'a' on tokens per min: Limit 100, Used 36, Requested 79."
    )


async def test_what_never_fits_should_not_be_tried_again(tmp_path):
    async with world(tmp_path, {"tokens_per_minute": 20}) as w:
        refused = await w.ask(max_tokens=50)
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


async def test_concurrent_requests_are_limited_until_one_ends(tmp_path):
    router = FakeRouter(says("hello", ends=False))
    async with world(tmp_path, {"max_concurrent": 1}, router=router) as w:
        running = asyncio.create_task(w.ask())
        await until(lambda: bool(router.streams))
        assert (await w.ask()).status_code == 429
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        router.script = says("hello")
        assert (await w.ask()).status_code == 200


async def test_models_that_a_key_may_not_use_do_not_exist_for_it(tmp_path):
    async with world(tmp_path, {"models": ["org/tiny-alias"]}, {"models": ["other"]}) as w:
        assert (await w.ask()).status_code == 200  # another name of the same model
        refused = await w.ask("sk-b")
        headers = {"authorization": "Bearer sk-b"}
        cards = await w.client.get("/v1/models", headers=headers)
        card = await w.client.get("/v1/models/tiny", headers=headers)
        tokens = await w.ask("sk-b", "/tokenize")
    assert refused.status_code == card.status_code == tokens.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert cards.json()["data"] == []


async def test_name_and_priority_reach_the_cluster(tmp_path):
    async with world(tmp_path, {"priority": 3}) as w:
        await w.ask(user="somebody else")
        await w.ask(priority=7)
        refused = await w.ask(priority=2)
    assert [(one.tenant, one.priority) for one in w.router.requests] == [("a", 3), ("a", 7)]
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "priority"
    assert "3" in refused.json()["error"]["message"]


async def test_a_router_in_front_may_set_the_priority_by_vllms_header(tmp_path):
    async with world(tmp_path, {"priority": -5}) as w:

        async def ask(value: str) -> httpx.Response:
            headers = {"authorization": "Bearer sk-a", "X-Vllm-Priority": value}
            return await w.client.post(CHAT, json={**HI, "priority": 1}, headers=headers)

        answers = [await ask(value) for value in ("7", "-5", "-6", "high", str(2**63), "")]
    assert [one.priority for one in w.router.requests] == [7, -5]
    assert [one.status_code for one in answers] == [200, 200, 400, 400, 400, 400]
    assert {one.json()["error"]["param"] for one in answers[2:]} == {"priority"}
    assert "X-Vllm-Priority" in answers[3].json()["error"]["message"]


async def test_answers_are_no_longer_than_the_key_allows(tmp_path):
    async with world(tmp_path, {"max_tokens": 9}) as w:
        await w.ask()
        await w.ask(max_tokens=5)
        await w.client.post(
            "/v1/completions",
            json={"model": "tiny", "prompt": "hi"},
            headers={"authorization": "Bearer sk-a"},
        )
        refused = await w.ask(max_completion_tokens=10)
    assert [one.sampling.max_tokens for one in w.router.requests] == [9, 5, 9]
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "max_completion_tokens"


async def test_a_bill_is_complete_and_agrees_with_metrics_and_engine(tmp_path):
    """Whole, streamed, several choices, refused, failed, broken off, abandoned."""
    async with world(tmp_path, {}, {}) as w:
        router = w.router
        whole = await w.ask()
        async with w.client.stream(
            "POST",
            CHAT,
            json={**HI, "stream": True, "max_tokens": 2},
            headers={"authorization": "Bearer sk-b"},
        ) as stream:
            await stream.aread()
        await w.ask(n=2)
        await w.ask(temperature=9)  # wrong: before any account of an answer
        await w.ask(priority=-1)  # wrong: after it
        router.refusal = OverloadedError("full", retry_after_s=1.0)
        await w.ask()
        router.refusal = None
        router.script = lambda request: [[TokenDelta(ids_of("hello"))], EngineError("lost")]
        await w.ask()
        router.script = says("hello world", ends=False)
        abandoned = asyncio.create_task(w.ask())
        await until(lambda: router.streams[-1].waits.is_set())
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        found = await scrape(_with_key(w.client))
    lines = w.usage()
    told = [(one["status"], one["finish_reasons"], one["completion_tokens"]) for one in lines]
    assert told == [
        (200, ["stop"], 3),
        (200, ["length"], 2),
        (200, ["stop", "stop"], 6),
        (400, [], 0),
        (503, ["error"], 0),
        (500, ["error"], 1),
        (499, ["abort"], 2),
    ]
    assert [one["prompt_tokens"] for one in lines] == [15, 15, 15, 0, 0, 15, 15]
    assert [one["key"] for one in lines] == ["a", "b", "a", "a", "a", "a", "a"]
    assert [one["stream"] for one in lines] == [False, True, *[False] * 5]
    assert lines[4]["error"] == "overloaded"
    assert lines[0]["request_id"] == whole.headers["x-request-id"]
    assert 0 < lines[0]["first_token_s"] <= lines[0]["duration_s"]
    assert {one["model"] for one in lines} == {"tiny"}
    for kind in ("prompt", "completion", "cached"):
        for key in "ab":
            billed = sum(one[f"{kind}_tokens"] for one in lines if one["key"] == key)
            labels = {"key": key, "model_name": "tiny", "kind": kind}
            assert value(found, "shoal_usage_tokens_total", **labels) == billed, (key, kind)
    generated = sum(
        count for (name, _), count in found.items() if name == "vllm:generation_tokens_total"
    )
    assert generated == sum(one["completion_tokens"] for one in lines)


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_a_prompt_that_is_given_up_before_its_first_token_counts_for_the_rate(
    tmp_path, num_choices
):
    router = FakeRouter(lambda request: [])  # a replica has it, and has said nothing
    async with world(tmp_path, {"tokens_per_minute": 400}, router=router) as w:
        waiting = asyncio.create_task(w.ask(n=num_choices, max_tokens=50))
        await until(lambda: [one.waits.is_set() for one in router.streams] == [True] * num_choices)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        router.script = lambda request: [DeadlineError("too late")]
        assert (await w.ask()).status_code == 504
        router.script = lambda request: [EngineError("lost")]
        assert (await w.ask()).status_code == 500
        router.script = says("hello")
        answer = await w.ask(max_tokens=50)
        found = await scrape(_with_key(w.client))
    left = 400 - 2 * NUM_PROMPT - (NUM_PROMPT + 50)
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(left)
    lines = w.usage()
    assert [one["abandoned_tokens"] for one in lines] == [NUM_PROMPT, NUM_PROMPT, 0, 0]
    assert [one["prompt_tokens"] for one in lines] == [0, 0, 0, NUM_PROMPT]
    labels = {"key": "a", "model_name": "tiny", "kind": "abandoned"}
    assert value(found, "shoal_usage_tokens_total", **labels) == 2 * NUM_PROMPT


async def test_what_no_replica_ever_had_is_not_counted(tmp_path):
    class Full(FakeRouter):
        async def start(self, request):
            await asyncio.Event().wait()

    async with world(tmp_path, {"tokens_per_minute": 400}, router=Full()) as w:
        waiting = asyncio.create_task(w.ask())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert [(one["status"], one["abandoned_tokens"]) for one in w.usage()] == [(499, 0)]


def _with_key(client: httpx.AsyncClient) -> httpx.AsyncClient:
    client.headers["authorization"] = "Bearer sk-a"
    return client


async def test_a_stream_that_breaks_off_is_an_error_in_the_books_too(tmp_path):
    failing = FakeRouter(lambda request: [[TokenDelta(ids_of("hello"))], UnavailableError("lost")])
    async with world(tmp_path, {}, router=failing) as w:
        assert '"code":"unavailable"' in (await w.ask(stream=True)).text
        found = await scrape(_with_key(w.client))
    (line,) = w.usage()
    assert (line["status"], line["error"]) == (200, "unavailable")
    assert (line["finish_reasons"], line["completion_tokens"]) == (["error"], 1)
    ends = {"model_name": "tiny", "engine": "", "finished_reason": "error"}
    assert value(found, "vllm:request_success_total", **ends) == 1


async def test_refusals_are_counted_by_their_limit(tmp_path):
    async with world(tmp_path, {"requests_per_minute": 1}) as w:
        await w.ask()
        await w.ask()
        found = await scrape(_with_key(w.client))
    labels = {"key": "a", "limit": "requests"}
    assert value(found, "shoal_rate_limited_requests_total", **labels) == 1


async def test_the_launchers_key_opens_and_is_billed_to_itself(tmp_path):
    config = GatewayConfig(api_keys=("sk",), probe_key="probe", usage_log=tmp_path / "usage.jsonl")
    app = create_app(config, FakeRouter(), FakeView())
    transport = httpx.ASGITransport(app=app)
    async with (
        app.state.tenancy.running(),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        headers = {"authorization": "Bearer probe"}
        assert (await client.post(CHAT, json=HI, headers=headers)).status_code == 200
        assert (await client.post(CHAT, json=HI)).status_code == 401
    assert json.loads((tmp_path / "usage.jsonl").read_text())["key"] == "shoal-probe"


@pytest.mark.parametrize("seconds", [0, -1, 1e9, "x"])
async def test_a_timeout_must_be_a_time(tmp_path, seconds):
    async with world(tmp_path, {}) as w:
        refused = await w.ask(timeout=seconds)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "timeout"


async def test_a_timeout_travels_with_the_request(tmp_path):
    async with world(tmp_path, {}) as w:
        await w.ask(timeout=2.5)
        await w.ask()
    assert [one.timeout_s for one in w.router.requests] == [2.5, None]
