"""What a plan must hold before kernels read by its numbers; test_model_runner shows steps."""

import pytest
import torch

from worker.engine.step import ScheduledSequence, StepPlan
from worker.runner.input_batch import InputBatch


def build(num_tokens: int, start: int = 0, token_ids: list[int] | None = None) -> None:
    batch = InputBatch(2, 10, 4, torch.float32, torch.device("cpu"))
    sequence = ScheduledSequence(0, start, num_tokens, [5, 6, 7], True)
    plan = StepPlan(1, [3] * num_tokens if token_ids is None else token_ids, [sequence], [], [])
    batch.apply(plan)
    batch.build(plan)


def test_a_sequence_may_be_as_long_as_the_model() -> None:
    build(10)


@pytest.mark.parametrize(("num_tokens", "start"), [(11, 0), (1, 10)])
def test_a_longer_one_is_refused_though_its_blocks_had_room(num_tokens: int, start: int) -> None:
    with pytest.raises(AssertionError, match="a sequence of 11 tokens"):
        build(num_tokens, start)


@pytest.mark.parametrize("token_ids", [[3, 3], [3, 3, 3, 3]])
def test_as_many_tokens_as_the_lengths_say(token_ids: list[int]) -> None:
    with pytest.raises(AssertionError, match="lengths of other tokens"):
        build(3, token_ids=token_ids)
