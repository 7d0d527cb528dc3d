import asyncio
from time import perf_counter

import pytest

from gateway.drain import Drain
from gateway.errors import EngineError, OverloadedError, UnavailableError
from gateway.generation import Generation, GenerationPlan
from gateway.metrics import GatewayMetrics
from gateway.text.choice import TextSettings
from gateway.tokens import SamplingSettings, TokenDelta, TokenRequest
from gateway.whole_answer import fold
from tests.gateway.fake_router import FakeRouter, ids_of, says, tokenizer
from tests.gateway.waiting import until

TOKENIZER = tokenizer()


def plan(num_choices: int = 1, **text: object) -> GenerationPlan:
    requests = [
        TokenRequest(f"r-{index}", "tiny", ids_of("hello the"), SamplingSettings(max_tokens=50))
        for index in range(num_choices)
    ]
    return GenerationPlan(requests, num_choices, TOKENIZER, TextSettings(**text))


def generation(router: FakeRouter, plan: GenerationPlan, drain: Drain | None = None) -> Generation:
    timer = GatewayMetrics().of_model("tiny").start(perf_counter(), 1)
    return Generation(plan, router, timer, drain or Drain())


async def test_fold_is_the_stream_joined():
    router = FakeRouter(says("hello world the cat", group=2))
    streamed = ""
    async with generation(router, plan()) as running:
        while not running.is_finished:
            streamed += "".join(event.text for event in await running.read())
    (whole,) = await fold(generation(FakeRouter(says("hello world the cat")), plan()))
    assert whole.text == streamed == "hello world the cat"
    assert whole.finish_reason == "stop"


async def test_a_finished_stream_is_not_aborted():
    router = FakeRouter()
    await fold(generation(router, plan()))
    assert [stream.is_aborted for stream in router.streams] == [False]


async def test_a_stop_string_aborts_its_stream_at_once():
    router = FakeRouter(says("hello world the cat", ends=False))
    (result,) = await fold(generation(router, plan(stops=(" world",))))
    assert (result.text, result.finish_reason) == ("hello", "stop")
    assert router.streams[0].is_aborted


async def test_choices_end_on_their_own():
    def script(request: TokenRequest) -> list[list[TokenDelta]]:
        text = "hello world the cat" if request.request_id == "r-0" else "the cat"
        return says(text)(request)

    router = FakeRouter(script)
    results = await fold(generation(router, plan(2, stops=(" world",))))
    assert [result.text for result in results] == ["hello", "the cat"]
    assert [stream.is_aborted for stream in router.streams] == [True, False]


async def test_usage_counts_a_prompt_once():
    running = generation(FakeRouter(), plan(3))
    await fold(running)
    usage = running.usage()
    assert usage.prompt_tokens == len(ids_of("hello the"))
    assert usage.completion_tokens == 9  # three times "hello", " world" and the end
    assert usage.prompt_tokens_details.cached_tokens == 2  # never more than the prompt


async def test_leaving_early_aborts_every_stream():
    router = FakeRouter(says("hello world", ends=False))
    async with generation(router, plan(3)) as running:
        await running.read()
    assert [stream.is_aborted for stream in router.streams] == [True] * 3


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_cancellation_aborts_every_stream(num_choices):
    router = FakeRouter(says("hello", ends=False))
    task = asyncio.create_task(fold(generation(router, plan(num_choices))))
    await until(lambda: len(router.streams) == num_choices)
    for stream in router.streams:
        await asyncio.wait_for(stream.waits.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(stream.is_aborted for stream in router.streams)


async def test_one_failed_choice_fails_and_aborts_all():
    def script(request: TokenRequest) -> list[object]:
        bad = [EngineError("broken")]
        return bad if request.request_id == "r-1" else says("hello", ends=False)(request)

    router = FakeRouter(script)
    with pytest.raises(EngineError, match="broken"):
        await fold(generation(router, plan(3)))
    assert all(stream.is_aborted for stream in router.streams)


async def test_a_refused_choice_aborts_those_that_started():
    router = FakeRouter(says("hello", ends=False))
    start = router.start

    async def start_two(request: TokenRequest) -> object:
        if request.request_id == "r-2":
            raise OverloadedError("full", retry_after_s=2)
        return await start(request)

    router.start = start_two
    with pytest.raises(OverloadedError):
        await fold(generation(router, plan(3)))
    assert [stream.is_aborted for stream in router.streams] == [True, True]


async def test_the_drains_deadline_ends_what_runs_with_an_error():
    drain = Drain()
    drain.enter()
    router = FakeRouter(says("hello", ends=False))
    task = asyncio.create_task(fold(generation(router, plan(), drain)))
    task.add_done_callback(lambda _: drain.leave())
    await until(lambda: bool(router.streams))
    await asyncio.wait_for(router.streams[0].waits.wait(), 5)
    await drain.run(timeout_s=0.01)
    with pytest.raises(UnavailableError, match="shut down"):
        await task
    assert router.streams[0].is_aborted


async def test_drain_waits_for_what_finishes_in_time():
    drain = Drain()
    drain.enter()
    draining = asyncio.create_task(drain.run(timeout_s=30))
    await asyncio.sleep(0)
    assert drain.is_draining and not draining.done()
    drain.leave()
    await asyncio.wait_for(draining, 5)
