"""Steps planned while others run bring the same tokens, whatever happens in between."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_async_executor import FakeAsyncExecutor
from tests.worker.engine.harness import VOCAB_SIZE, Harness, new_request, prompt_of
from tests.worker.engine.random_work import actions, run_actions
from tests.worker.engine.test_loop import Sink
from worker.config import SpeculationConfig
from worker.engine.lookahead_engine import LookaheadEngine
from worker.engine.loop import EngineLoop
from worker.engine.request import ErrorCode, RequestError
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.engine.step import UNKNOWN_TOKEN
from worker.errors import ShardError


def make(**settings: Any) -> tuple[Harness, FakeAsyncExecutor]:
    harness = Harness(looks_ahead=True, **settings)
    assert isinstance(harness.engine, LookaheadEngine)
    assert isinstance(harness.executor, FakeAsyncExecutor)
    return harness, harness.executor


def check_tokens(harness: Harness) -> None:
    for handle in harness.added:
        assert harness.tokens[handle] == harness.expected_tokens(handle)


def test_every_decode_is_planned_while_the_step_before_runs() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=10)
    harness.add(2, prompt_of(9, start=1), max_tokens=10)
    harness.run()
    check_tokens(harness)
    assert len(executor.plans) == 10  # one prompt step and nine decodes: none in vain
    assert (executor.num_ahead, executor.num_waited) == (9, 0)


def test_outputs_of_a_step_come_while_the_next_one_runs() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=10)
    outputs = harness.step()
    assert [len(output.token_ids) for output in outputs] == [1]
    assert len(executor.queue) == 1


def test_plans_ahead_leave_the_unknown_tokens_to_the_device() -> None:
    harness, executor = make()
    seen: list[list[int]] = []
    submit = executor.submit

    def watch(plan):  # type: ignore[no-untyped-def]
        seen.append(plan.token_ids)
        return submit(plan)

    executor.submit = watch  # type: ignore[method-assign]
    harness.add(1, prompt_of(6), max_tokens=3)
    harness.run()
    assert seen == [prompt_of(6), [UNKNOWN_TOKEN], [UNKNOWN_TOKEN]]
    check_tokens(harness)


def test_a_token_that_ends_a_request_wastes_one_row() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=30, stop_token_ids=tuple(range(0, VOCAB_SIZE, 3)))
    harness.run()
    check_tokens(harness)
    assert harness.reasons() == {1: "stop"}
    assert len(executor.plans) == len(harness.tokens[1]) + 1
    assert harness.engine.counters().generation_tokens == len(harness.tokens[1])


def test_a_slot_is_used_again_while_its_last_row_is_wasted() -> None:
    harness, executor = make(max_num_seqs=1)
    stops = tuple(range(0, VOCAB_SIZE, 3))
    for handle in range(6):
        harness.add(handle, prompt_of(5, start=handle), max_tokens=30, stop_token_ids=stops)
    harness.run()
    check_tokens(harness)
    assert executor.num_ahead > 6


def test_an_abort_takes_effect_while_the_step_runs() -> None:
    harness, _ = make()
    harness.add(1, prompt_of(6), max_tokens=30)
    harness.add(2, prompt_of(8), max_tokens=12)
    for _ in range(4):
        harness.step()
    harness.engine.abort("gateway", [1])
    harness.run()
    assert harness.reasons() == {1: "abort", 2: "length"}
    assert harness.tokens[1] == harness.expected_tokens(1)[:4]
    assert harness.tokens[2] == harness.expected_tokens(2)


def test_nothing_is_left_under_way_when_all_requests_are_aborted() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=30)
    harness.step()
    harness.engine.abort("gateway", [1])
    assert harness.engine.has_work
    harness.run()
    assert not executor.queue


def test_chunks_of_prompts_follow_each_other_without_a_pause() -> None:
    harness, executor = make(max_num_batched_tokens=8)
    harness.add(1, prompt_of(60), max_tokens=4)
    harness.run()
    check_tokens(harness)
    assert executor.num_ahead == len(executor.plans) - 1


def test_new_requests_enter_steps_planned_ahead() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=20)
    harness.step()
    harness.add(2, prompt_of(7, start=1), max_tokens=5)
    harness.run()
    check_tokens(harness)
    assert executor.num_waited == 0
    assert len(executor.plans) == 20


@pytest.mark.parametrize(
    "sampling",
    [
        {"grammar": Grammar("regex", "a")},
        {"logprobs": 1},
        {"prompt_logprobs": 0},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"min_tokens": 3},
        {"logit_bias": ((1, 2.0),)},
        {"allowed_token_ids": (1, 2)},
        {"bad_words": ((1,),)},
    ],
)
def test_requests_whose_tokens_the_host_must_see_are_waited_for(sampling: dict[str, Any]) -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=30)
    for _ in range(3):
        harness.step()
    harness.add(2, prompt_of(7, start=1), max_tokens=5, **sampling)
    for _ in range(2):  # one is under way, and one is planned without it behind that
        harness.step()
        assert executor.num_waited == 0
    harness.step()
    assert executor.num_waited == 1
    harness.run()
    check_tokens(harness)
    assert executor.num_ahead > 15  # before and after


def test_preemption_waits_for_the_step_before() -> None:
    harness, executor = make(num_blocks=12, max_num_seqs=4)
    for handle in range(4):
        harness.add(handle, prompt_of(9, start=handle), max_tokens=25)
    harness.run()
    check_tokens(harness)
    assert harness.engine.counters().preemptions > 0
    assert executor.num_ahead > 10


def test_an_urgent_request_sets_a_less_urgent_one_back() -> None:
    harness, _ = make(max_num_seqs=1)
    harness.add(1, prompt_of(6), max_tokens=20, priority=5)
    harness.step()
    harness.add(2, prompt_of(6, start=1), max_tokens=4)
    harness.run()
    assert list(harness.ends) == [2, 1]
    check_tokens(harness)


def test_prefixes_are_found_in_the_cache() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(40), max_tokens=4)
    harness.run()
    computed = executor.computed_tokens
    harness.add(2, prompt_of(40), max_tokens=4)
    harness.run()
    check_tokens(harness)
    assert executor.computed_tokens - computed < 10


def test_guesses_are_made_where_they_pay_and_not_waited_for_where_they_do_not() -> None:
    repetitive, _ = make(speculation=SpeculationConfig(4, 3, 1), memory=1, max_model_len=512)
    repetitive.add(1, prompt_of(6), max_tokens=100)
    repetitive.run()
    check_tokens(repetitive)
    assert repetitive.engine.counters().accepted_tokens > 10
    random, executor = make(speculation=SpeculationConfig(4, 3, 3), max_model_len=512)
    random.add(1, prompt_of(6), max_tokens=110)
    random.run()
    check_tokens(random)
    assert executor.num_ahead > 50


def test_a_failed_step_fails_all_requests() -> None:
    harness, executor = make()
    harness.add(1, prompt_of(6), max_tokens=10)
    harness.step()

    def fail(plan: object) -> None:
        raise ShardError("rank 1 has died")

    executor.before_step = fail
    with pytest.raises(ShardError):
        harness.step()
    harness.engine.fail_all(RequestError(ErrorCode.UNAVAILABLE, "gone"))
    assert [output.finish_reason for output in harness.engine.take_outputs()] == ["error"]
    assert harness.engine.load().num_free_blocks == harness.config.num_blocks


def test_the_loop_serves_aborts_and_drains() -> None:
    harness, executor = make(max_num_seqs=2)
    loop, sink = EngineLoop(harness.engine, harness.clock), Sink()
    loop.start(sink.on_outputs, sink.on_death)
    prompts = {handle: prompt_of(5 + handle, start=handle) for handle in range(4)}
    for handle, prompt in prompts.items():
        loop.submit(new_request(handle, prompt, max_tokens=20 + handle))
    loop.submit(new_request(9, prompt_of(4), max_tokens=100))
    loop.abort("gateway", [9])
    for handle in prompts:
        assert sink.wait_for_end(handle).finish_reason == "length"
        assert len(sink.tokens(handle)) == 20 + handle
    assert sink.wait_for_end(9).finish_reason == "abort"
    assert loop.stop(drain=True, timeout_s=10.0)
    assert executor.is_closed and not executor.queue
    assert loop.load.num_free_blocks == harness.config.num_blocks


def test_sampling_that_needs_nothing_but_logits_is_self_contained() -> None:
    assert SamplingParams(4).is_self_contained
    assert SamplingParams(4, 0.5, 0.9, 40, 0.1, seed=3, stop_token_ids=(1,)).is_self_contained


@settings(max_examples=200, deadline=None)
@given(
    actions=actions,
    num_blocks=st.integers(9, 24),
    block_size=st.sampled_from([1, 4]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 40),
    enable_prefix_caching=st.booleans(),
    speculation=st.sampled_from([None, SpeculationConfig(3, 2, 1)]),
    memory=st.sampled_from([None, 1]),
)
def test_every_request_ends_once_with_the_tokens_it_would_bring_alone(
    actions: list[object],
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    budget: int,
    enable_prefix_caching: bool,
    speculation: SpeculationConfig | None,
    memory: int | None,
) -> None:
    harness, executor = make(
        num_blocks=num_blocks * 4 // block_size,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=enable_prefix_caching,
        speculation=speculation,
        memory=memory,
    )
    run_actions(harness, actions)
    assert not executor.queue
    assert harness.engine._scheduler._num_dependent == 0
