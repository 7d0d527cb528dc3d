from dataclasses import replace

import pytest

from tests.fake_executor import generate_alone, next_token
from tests.worker.engine.harness import VOCAB_SIZE, Harness, new_request, prompt_of
from worker.engine.request import ErrorCode
from worker.engine.sampling_params import Grammar
from worker.engine.step import StepPlan, StepResult


def test_request_brings_the_tokens_it_would_bring_alone() -> None:
    harness = Harness()
    harness.add(1, prompt_of(10), max_tokens=7)
    harness.run()
    assert harness.tokens[1] == harness.expected_tokens(1)
    assert harness.reasons() == {1: "length"}


def test_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    harness = Harness(max_num_batched_tokens=8)
    harness.add(1, prompt_of(30), max_tokens=2)
    harness.run()
    chunks = [plan.sequences[0].num_tokens for plan in harness.executor.plans]
    assert chunks == [8, 8, 8, 6, 1]
    assert harness.tokens[1] == harness.expected_tokens(1)


def test_new_request_joins_running_ones_between_two_steps() -> None:
    harness = Harness()
    harness.add(1, prompt_of(5), max_tokens=10)
    harness.step()
    harness.add(2, prompt_of(6, start=3), max_tokens=2)
    outputs = harness.step()
    assert {output.handle for output in outputs} == {1, 2}


def test_stop_token_ends_the_request_and_is_included() -> None:
    harness = Harness()
    alone = generate_alone(prompt_of(5), new_request(1, [1], 20).sampling, VOCAB_SIZE, 100)
    harness.add(1, prompt_of(5), max_tokens=20, stop_token_ids=(alone[3],))
    harness.run()
    assert harness.tokens[1] == alone[: alone.index(alone[3]) + 1]
    assert harness.ends[1].finish_reason == "stop"
    assert harness.ends[1].stop_token_id == alone[3]


def test_stop_token_does_not_count_before_min_tokens() -> None:
    harness = Harness()
    alone = generate_alone(prompt_of(5), new_request(1, [1], 20).sampling, VOCAB_SIZE, 100)
    harness.add(1, prompt_of(5), max_tokens=20, min_tokens=6, stop_token_ids=(alone[3],))
    harness.run()
    assert len(harness.tokens[1]) > 6
    assert harness.tokens[1] == harness.expected_tokens(1)


def test_window_ends_the_request_with_length() -> None:
    harness = Harness(max_model_len=12)
    harness.add(1, prompt_of(8), max_tokens=100)
    harness.run()
    assert len(harness.tokens[1]) == 4
    assert harness.ends[1].finish_reason == "length"


def test_single_request_can_fill_the_whole_pool() -> None:
    harness = Harness(num_blocks=4, block_size=4)
    harness.add(1, prompt_of(8), max_tokens=100)
    harness.run()
    assert len(harness.tokens[1]) == 8
    assert harness.ends[1].finish_reason == "length"


def test_emitted_tokens_continue_where_another_replica_stopped() -> None:
    whole = Harness()
    whole.add(1, prompt_of(9), max_tokens=10, seed=7)
    whole.run()
    resumed = Harness()
    resumed.add(1, prompt_of(9), max_tokens=10, seed=7, emitted=whole.tokens[1][:4])
    resumed.run()
    assert resumed.tokens[1] == whole.tokens[1][4:]
    assert resumed.executor.plans[0].admitted[0].output_token_ids == whole.tokens[1][:4]


@pytest.mark.parametrize(("max_tokens", "reason"), [(3, "length"), (9, "stop")])
def test_request_that_was_complete_elsewhere_ends_at_once(max_tokens: int, reason: str) -> None:
    harness = Harness()
    harness.add(1, prompt_of(5), max_tokens=max_tokens, emitted=[4, 5, 6], stop_token_ids=(6,))
    if reason == "length":
        harness = Harness()
        harness.add(1, prompt_of(5), max_tokens=max_tokens, emitted=[4, 5, 6])
    harness.run()
    assert harness.reasons() == {1: reason}
    assert harness.tokens[1] == [] and harness.executor.plans == []


def test_aborted_request_frees_its_blocks_at_once() -> None:
    harness = Harness()
    harness.add(1, prompt_of(10), max_tokens=50)
    harness.step()
    assert harness.engine.load().num_free_blocks < 64
    harness.engine.abort("gateway", [1, 99])
    assert harness.engine.load().num_free_blocks == 64
    harness.run()
    assert harness.reasons() == {1: "abort"}


def test_owner_that_leaves_takes_only_its_own_requests_along() -> None:
    harness = Harness()
    for handle, owner in ((1, "a"), (2, "b"), (3, "a")):
        harness.add(handle, prompt_of(6, start=handle), owner=owner)
    harness.step()
    harness.engine.abort_owner("a")
    harness.run()
    assert harness.reasons() == {1: "abort", 2: "length", 3: "abort"}
    assert harness.tokens[2] == harness.expected_tokens(2)


def test_invalid_request_ends_with_an_error_and_harms_nobody() -> None:
    harness = Harness()
    harness.add(1, prompt_of(6))
    harness.add(2, [VOCAB_SIZE])
    harness.run()
    error = harness.ends[2].error
    assert error is not None
    assert (error.code, error.field) == (ErrorCode.INVALID_ARGUMENT, "prompt")
    assert harness.tokens[1] == harness.expected_tokens(1)


def test_handle_in_use_ends_the_request_it_stands_for() -> None:
    harness = Harness()
    harness.add(1, prompt_of(6), max_tokens=50)
    harness.step()
    harness.add(1, prompt_of(6))
    harness.run()
    assert harness.ends[1].error is not None
    assert harness.ends[1].error.field == "handle"


def test_full_queue_refuses_with_advice() -> None:
    harness = Harness(max_num_waiting=1)
    harness.add(1, prompt_of(6))
    harness.add(2, prompt_of(6))
    harness.run()
    error = harness.ends[2].error
    assert error is not None and error.code is ErrorCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s > 0


def test_request_whose_deadline_passes_in_the_queue_is_failed() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, prompt_of(6), max_tokens=10)
    harness.add(2, prompt_of(6), deadline_s=105.0)
    harness.step()
    harness.clock.now_s = 106.0
    harness.step()
    error = harness.ends[2].error
    assert error is not None and error.code is ErrorCode.DEADLINE_EXCEEDED
    harness.run()
    assert harness.reasons() == {1: "length", 2: "error"}


def test_timing_comes_with_the_first_token_and_with_the_end() -> None:
    harness = Harness()
    harness.add(1, prompt_of(6), max_tokens=3)
    harness.clock.now_s += 2.0
    harness.executor.before_step = lambda plan: setattr(
        harness.clock, "now_s", harness.clock.now_s + 1.0
    )
    harness.run()
    first, second, last = harness.outputs[1]
    assert first.timing is not None and last.timing is not None and second.timing is None
    assert (first.timing.queue_s, first.timing.prefill_s, first.timing.decode_s) == (2.0, 1.0, 0.0)
    assert (last.timing.queue_s, last.timing.prefill_s, last.timing.decode_s) == (2.0, 1.0, 2.0)


def test_logprobs_come_only_to_those_who_asked() -> None:
    harness = Harness()
    harness.add(1, prompt_of(6), logprobs=0)
    harness.add(2, prompt_of(6, start=1))
    harness.run()
    for output in harness.outputs[1]:
        assert output.logprobs is not None
        assert [entry.token_id for entry in output.logprobs] == output.token_ids
    assert all(output.logprobs is None for output in harness.outputs[2])


def test_prompt_logprobs_come_once_and_whole_despite_chunks() -> None:
    harness = Harness(max_num_batched_tokens=8)
    prompt = prompt_of(20)
    harness.add(1, prompt, prompt_logprobs=0)
    harness.run()
    first, *others = harness.outputs[1]
    assert first.prompt_logprobs is not None
    assert [entry.token_id for entry in first.prompt_logprobs] == prompt[1:]
    assert all(output.prompt_logprobs is None for output in others)


# --- prefix cache ---------------------------------------------------------------------------------


def test_repeated_prompt_computes_only_its_last_block() -> None:
    harness = Harness()
    harness.add(1, prompt_of(16), max_tokens=1)
    harness.run()
    before = harness.executor.computed_tokens
    harness.add(2, prompt_of(16), max_tokens=1)
    harness.run()
    assert harness.executor.computed_tokens - before == 4
    timing = harness.ends[2].timing
    assert timing is not None and timing.num_cached_tokens == 12
    counters = harness.engine.counters()
    assert (counters.prefix_cache_queries, counters.prefix_cache_hits) == (32, 12)


def test_conversation_finds_the_blocks_of_the_last_answer() -> None:
    harness = Harness()
    harness.add(1, prompt_of(10), max_tokens=11)
    harness.run()
    before = harness.executor.computed_tokens
    harness.add(2, [*prompt_of(10), *harness.tokens[1], 1, 2, 3], max_tokens=1)
    harness.run()
    assert harness.executor.computed_tokens - before == 24 - 20  # 21 known tokens: 5 full blocks


def test_simultaneous_requests_compute_a_common_prefix_once() -> None:
    harness = Harness(max_num_batched_tokens=32)
    shared = prompt_of(48)
    for handle in range(4):
        harness.add(handle, [*shared, handle, handle + 1], max_tokens=3)
    harness.run()
    assert harness.executor.computed_tokens == 48 + 4 * 2 + 4 * 2
    for handle in range(4):
        assert harness.tokens[handle] == harness.expected_tokens(handle)


def test_waiting_for_a_prefix_ends_when_its_computation_is_aborted() -> None:
    harness = Harness(max_num_batched_tokens=8)
    harness.add(1, prompt_of(40), max_tokens=3)
    harness.add(2, prompt_of(40), max_tokens=3)
    harness.step()
    assert harness.engine.load().num_waiting == 1
    harness.engine.abort("gateway", [1])
    harness.run()
    assert harness.tokens[2] == harness.expected_tokens(2)


def test_small_common_prefix_is_not_waited_for() -> None:
    harness = Harness(max_num_batched_tokens=64)
    harness.add(1, prompt_of(4) + [1] * 30)
    harness.add(2, prompt_of(4) + [2] * 20)
    harness.step()
    assert harness.engine.load().num_waiting == 0


def test_urgent_request_does_not_wait_for_a_less_urgent_one() -> None:
    harness = Harness(max_num_batched_tokens=8)
    harness.add(1, prompt_of(40), max_tokens=1, priority=5)
    harness.step()
    harness.add(2, prompt_of(40), max_tokens=1, priority=0)
    harness.step()
    assert harness.engine.load().num_running == 2
    harness.run()
    assert harness.tokens[2] == harness.expected_tokens(2)


# --- fairness and preemption ----------------------------------------------------------------------


def test_long_prompt_does_not_delay_short_ones() -> None:
    harness = Harness(num_blocks=400, max_num_batched_tokens=32, max_model_len=1000)
    harness.add(1, prompt_of(900), max_tokens=1)
    harness.step()
    first_token_step: dict[int, int] = {}
    for step in range(40):
        harness.add(100 + step, prompt_of(8, start=step), max_tokens=1)
        for output in harness.step():
            first_token_step.setdefault(output.handle, step)
    assert all(first_token_step[100 + step] == step for step in range(40))
    harness.run()
    assert harness.tokens[1] == harness.expected_tokens(1)


def test_long_prompt_is_not_starved_by_short_ones() -> None:
    harness = Harness(num_blocks=400, max_num_batched_tokens=32, max_model_len=1000)
    harness.add(1, prompt_of(320), max_tokens=1)
    for step in range(25):
        for i in range(4):  # 40 tokens a step: more than the budget
            harness.add(1000 + 4 * step + i, prompt_of(10, start=4 * step + i), max_tokens=1)
        harness.step()
        if 1 in harness.ends:
            break
    assert step <= 20


def test_large_request_that_found_no_room_is_not_overtaken_for_ever() -> None:
    harness = Harness(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=64)
    for handle in range(2):
        harness.add(handle, prompt_of(6, start=handle), max_tokens=12)
    harness.step()
    harness.add(500, prompt_of(50, start=9), max_tokens=1)
    for i in range(400):
        harness.add(1000 + i, prompt_of(6, start=i), max_tokens=6 + i % 7)
        harness.step()
        if 500 in harness.ends:
            break
    assert 500 in harness.ends
    assert len(harness.ends) > 10  # some did pass


def test_preempted_request_resumes_with_the_same_tokens() -> None:
    harness = Harness(num_blocks=10, max_num_seqs=4)
    for handle in range(4):
        harness.add(handle, prompt_of(8, start=handle * 3), max_tokens=16)
    harness.run()
    assert harness.engine.counters().preemptions > 0
    for handle in range(4):
        assert harness.tokens[handle] == harness.expected_tokens(handle)


def test_preempted_request_resumes_from_its_cached_blocks() -> None:
    harness = Harness(num_blocks=12, max_num_seqs=2)
    harness.add(1, prompt_of(20), max_tokens=20)
    harness.add(2, prompt_of(12, start=5), max_tokens=10)
    harness.run()
    assert harness.engine.counters().preemptions > 0
    resumed = [s for plan in harness.executor.plans for s in plan.sequences if s.new_block_ids]
    assert any(s.start > 0 and len(s.new_block_ids) > 1 for s in resumed)


def test_urgent_request_is_admitted_first() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, prompt_of(6), max_tokens=2, priority=-1)
    harness.step()
    harness.add(2, prompt_of(6, start=1), max_tokens=2)
    harness.add(3, prompt_of(6, start=2), max_tokens=2, priority=-1)
    harness.run()
    assert list(harness.ends) == [1, 3, 2]


def test_prompt_logprobs_survive_a_preemption_without_gap_or_repeat() -> None:
    harness = Harness(num_blocks=14, max_num_seqs=3, max_num_batched_tokens=5)
    harness.add(1, prompt_of(12), max_tokens=20)
    for _ in range(8):
        harness.step()
    prompt = prompt_of(30, start=11)
    harness.add(2, prompt, max_tokens=2, prompt_logprobs=0)
    harness.run()
    assert harness.ends[2].timing is not None and harness.ends[2].timing.num_preemptions > 0
    logprobs = harness.outputs[2][0].prompt_logprobs
    assert logprobs is not None and [e.token_id for e in logprobs] == prompt[1:]


# --- the books ------------------------------------------------------------------------------------


def test_load_tells_what_is_left_to_compute() -> None:
    harness = Harness(max_num_batched_tokens=8, max_num_seqs=1)
    harness.add(1, prompt_of(20), max_tokens=2)
    harness.add(2, prompt_of(10, start=1), max_tokens=2)
    load = harness.engine.load()
    assert (load.num_running, load.num_waiting, load.backlog_tokens) == (0, 2, 30)
    harness.step()
    load = harness.engine.load()
    assert (load.num_running, load.num_waiting, load.backlog_tokens) == (1, 1, 11 + 10)
    assert load.has_work and load.steps == 1
    harness.run()
    load = harness.engine.load()
    assert (load.backlog_tokens, load.num_free_blocks, load.has_work) == (0, 64, False)


def test_counters_add_up() -> None:
    harness = Harness()
    harness.add(1, prompt_of(6), max_tokens=3)
    harness.add(2, prompt_of(7, start=1), max_tokens=5)
    harness.add(3, [])
    harness.step()
    harness.engine.abort("gateway", [2])
    harness.run()
    counters = harness.engine.counters()
    assert (counters.prompt_tokens, counters.generation_tokens) == (13, 4)
    assert counters.finished_length == counters.finished_abort == counters.finished_error == 1


def test_cache_events_replay_to_the_prefix_cache() -> None:
    harness = Harness(num_blocks=8)
    mirror: set[bytes] = set()
    for handle in range(6):
        harness.add(handle, prompt_of(12, start=handle), max_tokens=4)
        harness.run()
        events = harness.engine.drain_cache_events()
        assert events is not None
        mirror = (mirror - set(events.removed)) | set(events.stored)
        assert mirror == set(harness.engine.cached_hashes())


def test_failing_executor_leaves_requests_that_can_still_be_failed() -> None:
    harness = Harness()
    harness.add(1, prompt_of(6))
    harness.add(2, prompt_of(6))

    def fail(plan: object) -> None:
        raise RuntimeError("rank 1 is gone")

    harness.executor.before_step = fail
    with pytest.raises(RuntimeError):
        harness.engine.step()
    from worker.engine.request import RequestError

    harness.engine.fail_all(RequestError(ErrorCode.UNAVAILABLE, "gone"))
    outputs = harness.engine.take_outputs()
    assert [output.finish_reason for output in outputs] == ["error", "error"]
    assert harness.engine.load().num_free_blocks == 64


def test_next_token_depends_on_the_whole_context() -> None:
    # The fake's own promise, on which every test here rests.
    tokens = {next_token([*prompt_of(20, start=i), 3], 10**6) for i in range(20)}
    assert len(tokens) == 20


def test_a_sequence_that_the_runner_gives_up_ends_with_an_error_and_no_other_does() -> None:
    harness = Harness()
    execute = harness.executor.execute

    def execute_and_fail(plan: StepPlan) -> StepResult:
        result = execute(plan)
        slot = next((s.slot for s in plan.admitted if s.prompt_token_ids == prompt_of(5)), None)
        return result if slot is None else replace(result, failed={slot: "no such rule"})

    harness.executor.execute = execute_and_fail  # type: ignore[method-assign]
    grammar = Grammar("lark", "start: nothing")
    harness.add(1, prompt_of(5), grammar=grammar)
    harness.add(2, prompt_of(6), grammar=grammar)
    harness.run()
    assert harness.reasons() == {1: "error", 2: "length"}
    error = harness.ends[1].error
    assert error is not None
    assert (error.code, error.field) == (ErrorCode.INVALID_ARGUMENT, "grammar")
    assert error.message == "no such rule"
    assert harness.tokens == {1: [], 2: harness.expected_tokens(2)}


def test_a_constrained_request_stops_where_its_grammar_ends_even_under_min_tokens() -> None:
    harness = Harness()
    alone = generate_alone(prompt_of(5), new_request(1, [1], 20).sampling, VOCAB_SIZE, 100)
    stops = {"stop_token_ids": (alone[1],), "min_tokens": 15}
    harness.add(1, prompt_of(5), max_tokens=20, grammar=Grammar("regex", "a"), **stops)
    harness.run()
    assert harness.tokens[1] == alone[: alone.index(alone[1]) + 1]


def test_a_grammar_of_an_unknown_kind_is_refused() -> None:
    harness = Harness()
    harness.add(1, prompt_of(5), grammar=Grammar("unknown", ""))
    harness.run()
    error = harness.ends[1].error
    assert error is not None and error.field == "grammar"


def test_windowed_sequences_outgrow_the_pool() -> None:
    # Three sequences of up to 128 tokens, 300 in all, in a cache of 48.
    harness = Harness(num_blocks=12, max_num_batched_tokens=16, windows=(9,))
    harness.add(1, prompt_of(100), max_tokens=28)
    harness.add(2, prompt_of(4, start=3), max_tokens=120)
    harness.add(3, prompt_of(40, start=9), max_tokens=20)
    harness.run()
    for handle, num_tokens in ((1, 28), (2, 120), (3, 20)):
        assert len(harness.tokens[handle]) == num_tokens
        assert harness.tokens[handle] == harness.expected_tokens(handle)


def test_windowed_prompt_resumes_from_the_window_alone() -> None:
    harness = Harness(num_blocks=12, windows=(9,))
    harness.add(1, prompt_of(90), max_tokens=1)
    harness.run()
    computed = harness.executor.computed_tokens
    harness.add(2, prompt_of(90), max_tokens=4)  # only the end of the first is still cached
    harness.run()
    assert harness.ends[2].timing is not None
    assert harness.ends[2].timing.num_cached_tokens == 88
    assert harness.executor.computed_tokens - computed == 2 + 3
    assert harness.tokens[2] == harness.expected_tokens(2)
