"""Guesses change how many steps a request takes, never what it brings."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import VOCAB_SIZE, Harness, prompt_of
from tests.worker.engine.simulated_machine import Costs, Simulation
from worker.config import SpeculationConfig
from worker.engine.drafting import Acceptance
from worker.engine.pace import Pace
from worker.engine.sampling_params import Grammar
from worker.engine.speculation import Speculator
from worker.engine.stats import EngineStats
from worker.engine.step_time import StepLoad

GUESSES = SpeculationConfig(num_speculative_tokens=6, prompt_lookup_max=3, prompt_lookup_min=1)


def repetitive(speculation: SpeculationConfig | None = GUESSES, **settings: Any) -> Harness:
    settings = {"num_blocks": 128, "max_model_len": 256, **settings}
    return Harness(speculation=speculation, memory=1, **settings)


def test_repetitive_text_takes_fewer_steps_and_brings_the_same() -> None:
    plain, guessing = repetitive(None), repetitive()
    for harness in (plain, guessing):
        harness.add(1, prompt_of(10), max_tokens=150, seed=3)
    num_plain, num_guessing = plain.run(), guessing.run()
    assert guessing.tokens[1] == plain.tokens[1] == guessing.expected_tokens(1)
    assert num_plain == 150
    assert num_guessing < 100
    counters = guessing.engine.counters()
    assert 0 < counters.accepted_tokens < counters.draft_tokens
    by_position = counters.accepted_by_position
    assert sum(by_position) == counters.accepted_tokens and by_position[0] <= counters.drafts
    assert list(by_position) == sorted(by_position, reverse=True) and min(by_position) > 0
    assert counters.accepted_tokens == 150 - num_guessing
    assert counters.generation_tokens == 150


@pytest.mark.parametrize("end", ["stop", "min_tokens", "length", "window"])
def test_an_end_within_a_run_of_right_guesses_cuts_it(end: str) -> None:
    """Wherever the run is cut, what was guessed and right behind it is not brought."""
    whole = repetitive()
    whole.add(1, prompt_of(10), max_tokens=100, seed=3)
    whole.run()
    tokens = whole.tokens[1]
    for place in range(2, 60):
        harness = repetitive(max_model_len=10 + place if end == "window" else 256)
        limits: dict[str, Any] = {
            "stop": {"stop_token_ids": (tokens[place],)},
            "min_tokens": {"stop_token_ids": tuple(range(VOCAB_SIZE)), "min_tokens": place},
            "length": {"max_tokens": place},
            "window": {},
        }[end]
        harness.add(1, prompt_of(10), seed=3, **{"max_tokens": 100, **limits})
        harness.run()
        assert harness.tokens[1] == harness.expected_tokens(1)
        is_stopped = end in ("stop", "min_tokens")
        assert harness.reasons() == {1: "stop" if is_stopped else "length"}
        assert harness.ends[1].stop_token_id == (harness.tokens[1][-1] if is_stopped else None)


def test_log_probabilities_come_one_a_token() -> None:
    harness = repetitive()
    harness.add(1, prompt_of(10), max_tokens=80, seed=3, logprobs=0)
    harness.add(2, prompt_of(12), max_tokens=80, seed=5)
    harness.run()
    assert harness.engine.counters().accepted_tokens > 0
    scored = [entry.token_id for output in harness.outputs[1] for entry in output.logprobs or []]
    assert scored == harness.tokens[1] == harness.expected_tokens(1)
    assert all(output.logprobs is None for output in harness.outputs[2])


def test_only_accepted_tokens_enter_the_prefix_cache() -> None:
    harness = repetitive()
    harness.add(1, prompt_of(10), max_tokens=100, seed=3)
    harness.run()
    assert harness.engine.counters().draft_tokens > harness.engine.counters().accepted_tokens
    everything = prompt_of(10) + harness.tokens[1]
    computed = harness.executor.computed_tokens
    harness.add(2, everything, max_tokens=1, seed=3)  # the executor reads every cached block back
    harness.run()
    assert harness.executor.computed_tokens - computed <= 4 + 1
    assert harness.ends[2].timing is not None
    assert harness.ends[2].timing.num_cached_tokens >= 104


def test_a_preempted_request_goes_on_guessing() -> None:
    harness = repetitive(num_blocks=24)
    for handle in (1, 2, 3):
        harness.add(handle, prompt_of(20, start=handle), max_tokens=60, seed=handle)
    harness.run()
    counters = harness.engine.counters()
    assert counters.preemptions > 0 and counters.accepted_tokens > 0
    for handle in (1, 2, 3):
        assert harness.tokens[handle] == harness.expected_tokens(handle)


def test_a_resumed_request_continues_where_another_replica_stopped() -> None:
    whole, resumed = repetitive(), repetitive()
    whole.add(1, prompt_of(9), max_tokens=80, seed=3)
    whole.run()
    resumed.add(1, prompt_of(9), max_tokens=80, seed=3, emitted=whole.tokens[1][:33])
    assert resumed.run() < 47
    assert resumed.tokens[1] == whole.tokens[1][33:]


def test_nothing_is_guessed_beside_a_prompt() -> None:
    harness = repetitive(max_num_batched_tokens=16)
    harness.add(1, prompt_of(10), max_tokens=120, seed=3)
    for _ in range(30):
        harness.step()
    harness.add(2, prompt_of(60, start=1), max_tokens=50)
    harness.run()
    assert harness.engine.counters().accepted_tokens > 0
    for plan in harness.executor.plans:
        if any(sequence.num_drafts for sequence in plan.sequences):
            assert all(s.num_tokens == 1 + s.num_drafts for s in plan.sequences)


def test_nothing_is_guessed_under_a_grammar() -> None:
    harness = repetitive()
    harness.add(1, prompt_of(10), max_tokens=100, seed=3, grammar=Grammar("regex", ".*"))
    harness.run()
    assert harness.engine.counters().draft_tokens == 0
    assert harness.tokens[1] == harness.expected_tokens(1)


def test_a_full_batch_is_left_alone() -> None:
    harness = repetitive(max_num_seqs=4)
    for handle in range(3):
        harness.add(handle, prompt_of(10, start=handle), max_tokens=100, seed=handle)
    for _ in range(60):
        harness.step()
    assert harness.engine.counters().draft_tokens == 0
    harness.engine.abort("gateway", [0])
    harness.run()
    assert harness.engine.counters().accepted_tokens > 0


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    length=st.integers(1, 40),
    max_tokens=st.integers(1, 90),
    min_tokens=st.integers(0, 30),
    stops=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=3),
    config=st.builds(
        lambda k, low, more: SpeculationConfig(k, low + more, low),
        st.integers(1, 12),
        st.integers(1, 3),
        st.integers(0, 3),
    ),
    memory=st.sampled_from([1, 2]),
    block_size=st.sampled_from([1, 4, 16]),
)
def test_speculative_output_is_the_plain_one(
    seeds: list[int],
    length: int,
    max_tokens: int,
    min_tokens: int,
    stops: set[int],
    config: SpeculationConfig,
    memory: int,
    block_size: int,
) -> None:
    harness = Harness(
        num_blocks=600 // block_size,
        block_size=block_size,
        max_model_len=128,
        speculation=config,
        memory=memory,
    )
    for handle, seed in enumerate(seeds):
        harness.add(
            handle,
            prompt_of(length, start=seed),
            max_tokens,
            seed=seed,
            min_tokens=min(min_tokens, max_tokens),
            stop_token_ids=tuple(stops),
        )
    harness.run()
    for handle in range(len(seeds)):
        assert harness.tokens[handle] == harness.expected_tokens(handle)


# --- when it pays ---------------------------------------------------------------------------------


def priced_speculator(draft_s: float) -> tuple[Speculator, StepLoad]:
    """For one stream with steps of 10 ms, each guess of which costs `draft_s`."""
    pace = Pace(None, 16)
    for i in range(40):
        num_drafts = i % 4
        pace.observe(StepLoad(num_decodes=1, num_drafts=num_drafts), 0.01 + draft_s * num_drafts)
    return Speculator(GUESSES, pace, EngineStats(), 8), StepLoad(num_decodes=1)


@pytest.mark.parametrize(
    ("draft_s", "can_pay"), [(0.0, True), (0.001, True), (0.006, True), (0.009, False)]
)
def test_guesses_dearer_than_a_token_are_not_made(draft_s: float, can_pay: bool) -> None:
    speculator, decodes = priced_speculator(draft_s)
    may_guess = [speculator.begin_step(decodes) for _ in range(64)]
    # All but the first ones and those that tell what a step takes without.
    assert sum(may_guess) == (64 - 15 - 4 if can_pay else 0)


def test_dearer_guesses_are_made_only_where_they_are_likelier() -> None:
    counts = []
    for draft_s in (0.0002, 0.003, 0.005):
        speculator, decodes = priced_speculator(draft_s)
        while not speculator.begin_step(decodes):
            pass
        counts.append(speculator._num_paying(0.8))
    assert counts[0] == 6 and counts[0] > counts[1] > counts[2] >= 1


def test_rejections_lower_the_rate_and_time_lifts_it() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.note(4, 0)
    low = acceptance.rate(0.5)
    assert low < 0.15
    for _ in range(200):
        acceptance.fade()
    assert acceptance.rate(0.5) > 0.35
    for _ in range(20):
        acceptance.note(4, 4)
    assert acceptance.rate(0.5) > 0.9


def test_guesses_that_do_not_pay_on_the_machine_cease_and_come_back() -> None:
    """A row to verify costs as much as a whole step; later, next to nothing."""
    simulation = Simulation(0, Costs(0.0, decode=0.01, draft=0.01), speculation=GUESSES, memory=1)
    simulation.add(0, 20, 3000)
    simulation.run(500)
    dear = simulation.engine.counters()
    assert dear.draft_tokens < 200
    simulation.machine.costs = Costs(step=0.0, decode=0.01, draft=0.0001)
    simulation.run(500)
    cheap = simulation.engine.counters()
    assert cheap.draft_tokens - dear.draft_tokens > 500
    assert cheap.accepted_tokens - dear.accepted_tokens > 200


@pytest.mark.parametrize("draft_s", [0.0001, 0.002, 0.006])
@pytest.mark.parametrize("memory", [1, 2])
def test_guessing_is_never_much_slower_than_not_guessing(draft_s: float, memory: int) -> None:
    """Eight streams, on a noisy machine, whatever a row to verify costs."""
    took_s = {}
    for config in (None, GUESSES):
        rng = random.Random(1)
        costs = Costs(step=0.004, decode=0.002, draft=draft_s)
        simulation = Simulation(0, costs, lambda r=rng: 1 + r.random(), speculation=config)
        for handle in range(8):
            simulation.add(handle, 20, 400)
        simulation.run()
        took_s[config] = simulation.clock()
    assert took_s[GUESSES] - 100 < 1.07 * (took_s[None] - 100)
