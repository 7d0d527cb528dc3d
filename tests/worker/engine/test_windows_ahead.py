"""Blocks that come back behind windows, where a step is planned while the one before still runs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Harness, prompt_of
from tests.worker.engine.random_work import actions, run_actions


@settings(max_examples=60, deadline=None)
@given(
    actions=actions,
    num_blocks=st.integers(9, 20),
    budget=st.integers(1, 40),
    windows=st.sampled_from([(3,), (13,), (None, 3), (None, 8, 8), (None, None, 5), (8, 3)]),
)
def test_every_request_ends_with_the_tokens_it_would_bring_alone(
    actions: list[object], num_blocks: int, budget: int, windows: tuple[int | None, ...]
) -> None:
    harness = Harness(
        num_blocks=num_blocks,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        windows=windows,
        looks_ahead=True,
    )
    run_actions(harness, actions)


@pytest.mark.parametrize("looks_ahead", [False, True])
@pytest.mark.parametrize("windows", [(9,), (None, 9)])
def test_chunks_of_a_long_prompt_are_whole(
    windows: tuple[int | None, ...], looks_ahead: bool
) -> None:
    harness = Harness(
        num_blocks=100,
        max_num_batched_tokens=16,
        max_model_len=400,
        windows=windows,
        target_itl_ms=0.0,
        looks_ahead=looks_ahead,
    )
    harness.add(0, prompt_of(300), max_tokens=2)
    harness.run()
    chunks = [sequence.num_tokens for plan in harness.executor.plans for sequence in plan.sequences]
    assert chunks[:-2] == [16] * 18
