"""Requests whose grammar brings nothing in one step and several tokens in another: their tokens,
ends and blocks are those of any request.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import VOCAB_SIZE, Harness, prompt_of
from worker.config import SpeculationConfig
from worker.engine.sampling_params import Grammar

GRAMMAR = Grammar("regex", ".*")


@dataclass(frozen=True)
class Ask:
    prompt_len: int
    max_tokens: int
    is_constrained: bool
    stops: bool


asks = st.lists(
    st.builds(
        Ask,
        prompt_len=st.integers(1, 30),
        max_tokens=st.integers(1, 40),
        is_constrained=st.sampled_from([True, True, False]),
        stops=st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    asks=asks,
    num_blocks=st.sampled_from([20, 64]),
    num_batched_tokens=st.sampled_from([8, 17, 64]),
    speculates=st.booleans(),
    windows=st.sampled_from([(None,), (12,), (None, 12)]),
)
def test_tokens_and_ends_are_as_of_any_request(
    asks, num_blocks, num_batched_tokens, speculates, windows
):
    harness = Harness(
        num_blocks=num_blocks,
        max_num_batched_tokens=num_batched_tokens,
        speculation=SpeculationConfig(4, 3, 1) if speculates else None,
        windows=windows,
        memory=2,
    )
    for handle, ask in enumerate(asks):
        stop_ids = tuple(range(0, VOCAB_SIZE, 9)) if ask.stops else ()
        harness.add(
            handle,
            prompt_of(ask.prompt_len, handle),
            ask.max_tokens,
            grammar=GRAMMAR if ask.is_constrained else None,
            stop_token_ids=stop_ids,
            seed=handle,
        )
    harness.run()
    for handle in range(len(asks)):
        assert harness.tokens[handle] == harness.expected_tokens(handle)
        assert harness.ends[handle].finish_reason in ("stop", "length")


def test_tokens_that_come_at_once_take_one_step():
    harness = Harness(num_blocks=64)
    harness.add(0, prompt_of(6), max_tokens=60, grammar=GRAMMAR)
    num_steps = harness.run()
    assert harness.tokens[0] == harness.expected_tokens(0)
    assert len(harness.tokens[0]) == 60
    assert num_steps < 40
    assert max(len(plan.token_ids) for plan in harness.executor.plans[1:]) > 3


def test_a_step_without_a_token_has_no_output():
    harness = Harness()
    harness.add(0, prompt_of(5), max_tokens=3, grammar=GRAMMAR)
    assert harness.step() == []
    [output] = harness.step()
    assert output.token_ids and output.timing is not None


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_an_end_within_a_run_cuts_it(max_tokens: int):
    harness = Harness()
    harness.add(0, prompt_of(6), max_tokens=max_tokens, grammar=GRAMMAR)
    harness.run()
    assert harness.tokens[0] == harness.expected_tokens(0)
    assert len(harness.tokens[0]) == max_tokens
    assert harness.engine.counters().generation_tokens == max_tokens
