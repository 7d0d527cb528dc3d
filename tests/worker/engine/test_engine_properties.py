"""Any sequence of adds, aborts and steps, with pools so small that preemption is the rule."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Harness
from tests.worker.engine.random_work import actions, run_actions
from worker.config import SpeculationConfig

WINDOWS: list[tuple[int | None, ...]] = [
    (None,), (None,), (1,), (3,), (8,), (13,), (100,),
    (None, 3), (None, 13), (None, 8, 8), (None, None, 5), (8, 3), (None, 13, 13, 1),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    actions=actions,
    num_blocks=st.integers(9, 20),
    block_size=st.sampled_from([1, 4]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 40),
    enable_prefix_caching=st.booleans(),
    windows=st.sampled_from(WINDOWS),
    speculation=st.sampled_from([None, SpeculationConfig(3, 2, 1), SpeculationConfig(9, 1, 1)]),
    memory=st.sampled_from([None, 1]),
)
def test_every_request_ends_once_with_the_tokens_it_would_bring_alone(
    actions: list[object],
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    budget: int,
    enable_prefix_caching: bool,
    windows: tuple[int | None, ...],
    speculation: SpeculationConfig | None,
    memory: int | None,
) -> None:
    harness = Harness(
        num_blocks=num_blocks * 4 // block_size,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=enable_prefix_caching,
        windows=windows,
        speculation=speculation,
        memory=memory,
    )
    run_actions(harness, actions)
    assert len(harness.engine._scheduler._prefixes) == 0
