"""Running streams keep their rhythm while prompts come in, on a machine whose costs are known."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.simulated_machine import Costs, Simulation, p99
from worker.engine.pace import Pace
from worker.engine.step_time import StepLoad

PROMPTS = range(1, 5)


def four_prompts_beside_a_stream(simulation: Simulation) -> tuple[list[float], float]:
    """Four prompts of 1500 tokens arrive at once while one request decodes. Returns the stream's
    gaps in ms until all have their first token, and how long that took.
    """
    simulation.add(0, 128, 4000)
    simulation.run(60)
    arrived_s = simulation.clock()
    for handle in PROMPTS:
        simulation.add(handle, 1500, 16)
    while not all(simulation.times[handle] for handle in PROMPTS):
        simulation.step()
    return simulation.gaps_ms(0, arrived_s - 0.007), simulation.clock() - arrived_s


@pytest.mark.parametrize("target_ms", [25, 50, 100, 200])
def test_the_stream_holds_its_target_and_the_prompts_end_in_time(target_ms: float) -> None:
    free_gaps, free_s = four_prompts_beside_a_stream(Simulation(target_itl_ms=0))
    assert free_gaps[-1] > 1000  # what is to be cured
    gaps, took_s = four_prompts_beside_a_stream(Simulation(target_itl_ms=target_ms))
    assert p99(gaps) <= 1.05 * target_ms
    assert gaps[len(gaps) // 2] >= 0.7 * target_ms  # and it makes use of what is allowed
    # The prompts pay no more than the steps that the stream gets meanwhile.
    assert took_s <= 1.05 * free_s + len(gaps) * 0.007
    assert took_s <= 1.7 * free_s


def test_prompts_that_arrive_together_do_not_wait_for_each_others_rest() -> None:
    def first_tokens_s(target_ms: float | None) -> list[float]:
        simulation = Simulation(target_ms, slowness=lambda: 2.0)
        simulation.add(0, 300, 1)  # so that the machine's speed is known
        simulation.run(5)
        started_s = simulation.clock()
        for handle in PROMPTS:
            simulation.add(handle, 1500, 16)
        while not all(simulation.times[handle] for handle in PROMPTS):
            simulation.step()
        return sorted(simulation.times[handle][0] - started_s for handle in PROMPTS)

    bounded, free = first_tokens_s(None), first_tokens_s(0)
    assert all(sooner <= later for sooner, later in zip(bounded[:3], free[:3], strict=True))
    assert bounded[2] < 0.85 * free[2]  # which ended with the fourth, in one step
    assert sum(bounded) < 0.95 * sum(free)
    assert bounded[-1] < 1.15 * free[-1]


def test_the_target_holds_on_a_noisy_machine() -> None:
    rng = random.Random(5)
    noisy = Simulation(target_itl_ms=50, slowness=lambda: 1 + abs(rng.gauss(0, 0.08)))
    gaps, _ = four_prompts_beside_a_stream(noisy)
    assert p99(gaps) <= 60
    assert sum(gap > 50 for gap in gaps) <= 0.1 * len(gaps)


def test_the_target_that_suits_the_model_is_found_without_one_given() -> None:
    for factor, most_ms in ((1.0, 50), (2.0, 100)):
        gaps, _ = four_prompts_beside_a_stream(Simulation(None, slowness=lambda f=factor: f))
        assert p99(gaps) <= most_ms


def test_prompts_get_as_much_time_as_decoding_without_a_target_given() -> None:
    _, free_s = four_prompts_beside_a_stream(Simulation(0, slowness=lambda: 30.0))
    gaps, took_s = four_prompts_beside_a_stream(Simulation(None, slowness=lambda: 30.0))
    assert took_s < 2.5 * free_s
    assert gaps[len(gaps) // 2] < 3 * 30 * 7  # a step that only decodes takes 30 times 7 ms


def test_a_machine_that_loses_half_its_speed_is_followed() -> None:
    speed = [1.0]
    simulation = Simulation(target_itl_ms=60, slowness=lambda: speed[0])
    simulation.add(0, 128, 4000)
    simulation.run(60)
    for handle in range(1, 13):
        simulation.add(handle, 1500, 4)
    simulation.run(60)
    speed[0] = 2.0
    simulation.run(12)
    slowed_s = simulation.clock()
    simulation.run(60)
    assert not simulation.times[12]  # still computing prompts
    gaps = simulation.gaps_ms(0, slowed_s)
    assert gaps[-1] <= 75 and gaps[len(gaps) // 2] >= 35


def test_steps_do_not_oscillate() -> None:
    simulation = Simulation(target_itl_ms=60)
    simulation.add(0, 128, 4000)
    simulation.run(60)
    simulation.add(1, 6000, 4)
    simulation.run(5)
    first = len(simulation.machine.executor.plans)
    simulation.run(60)
    chunks = [plan.sequences[-1].num_tokens for plan in simulation.machine.executor.plans[first:]]
    assert all(abs(b - a) <= 16 for a, b in pairwise(chunks))
    # Less and less, as attention costs more and more, and not up and down.
    assert sum(b > a for a, b in pairwise(chunks)) <= 25
    assert chunks[-1] < chunks[0]


def test_without_decodes_a_step_carries_all_it_can() -> None:
    simulation = Simulation(target_itl_ms=20, slowness=lambda: 0.2)
    for handle in PROMPTS:
        simulation.add(handle, 3000, 1)
    simulation.run()
    assert len(simulation.machine.step_times) == 6  # 12,000 tokens, 2048 a step


def test_without_decodes_a_step_of_a_slow_machine_takes_half_a_second() -> None:
    simulation = Simulation(target_itl_ms=20)
    for handle in PROMPTS:
        simulation.add(handle, 3000, 1)
    simulation.run()
    first, *others = simulation.machine.step_times
    assert first > 1  # nothing was known of the machine
    assert max(others) < 0.6
    assert len(others) < 2.2 * sum(others)  # and makes use of it


def test_prompts_progress_where_decoding_alone_misses_the_target() -> None:
    simulation = Simulation(target_itl_ms=1)
    gaps, took_s = four_prompts_beside_a_stream(simulation)
    assert gaps[-1] < 30  # a block beside a decode: 15 ms
    assert took_s < 10


def test_batches_that_decode_slowly_leave_prompts_their_part() -> None:
    """32 streams take 80 ms a step: 16 prompt tokens a step would starve whoever comes."""
    simulation = Simulation(target_itl_ms=50)
    for handle in range(100, 132):
        simulation.add(handle, 64, 3000)
    simulation.run(80)
    simulation.add(1, 1500, 1)
    simulation.run(50)
    assert simulation.times[1]
    assert simulation.gaps_ms(100, simulation.arrivals[1])[-1] < 1.4 * 80


@settings(max_examples=60, deadline=None)
@given(
    costs=st.builds(
        Costs,
        step=st.floats(0, 0.05),
        prefill_token=st.floats(1e-6, 0.01),
        prefill_pair=st.floats(0, 1e-6),
        decode=st.floats(1e-6, 0.02),
        context_token=st.floats(0, 1e-5),
    ),
    target_ms=st.one_of(st.none(), st.floats(0, 500)),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    seed=st.integers(0, 100),
    noise=st.floats(0, 2),
)
def test_every_prompt_progresses_every_step_whatever_the_machine(
    costs: Costs, target_ms: float | None, lengths: list[int], seed: int, noise: float
) -> None:
    rng = random.Random(seed)
    simulation = Simulation(target_ms, costs, lambda: 1 + rng.random() * noise)
    simulation.add(0, 10, 3000)
    simulation.run(5)
    for handle, length in enumerate(lengths, start=1):
        simulation.add(handle, length, 1)
    num_blocks = sum(-(-length // 16) for length in lengths)
    simulation.run(num_blocks + len(lengths))
    assert all(simulation.times[handle] for handle in range(1, len(lengths) + 1))


@given(
    most=st.integers(1, 4096),
    num_computed=st.integers(0, 100_000),
    times=st.lists(st.floats(1e-6, 10), max_size=20),
    target_s=st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_budget_is_a_block_at_least_and_never_above_the_most(
    most: int, num_computed: int, times: list[float], target_s: float | None
) -> None:
    pace = Pace(target_s, 16)
    for i, seconds in enumerate(times):
        pace.observe(StepLoad(i * 37 % 300, i * 1000.0, i % 3, i * 10, i % 2), seconds)
    budget = pace.prefill_tokens(StepLoad(num_decodes=2, decode_context=50), num_computed, most)
    assert min(16, most) <= budget <= most
    alone = pace.prefill_tokens(StepLoad(), num_computed, most)
    assert min(256, most) <= alone <= most
    assert target_s != 0 or alone == most
