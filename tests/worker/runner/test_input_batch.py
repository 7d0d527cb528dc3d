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


def test_each_group_has_tables_and_slots_of_its_own() -> None:
    batch = InputBatch(2, 16, 4, torch.float32, torch.device("cpu"), num_groups=3)
    first = ScheduledSequence(1, 0, 6, [10, 20, 30, 11, 21, 31], False)
    second = ScheduledSequence(1, 6, 3, [12, 22, 32], True)
    other = ScheduledSequence(0, 0, 2, [5, 6, 7], True)
    batch.apply(StepPlan(1, [3] * 6, [first], [], []))
    plan = StepPlan(2, [3] * 5, [second, other], [], [])
    batch.apply(plan)
    inputs = batch.build(plan)
    for group, layout in enumerate(inputs.layouts):
        tens = 10 * (group + 1)
        assert layout.block_tables[:, :1].tolist() == [[tens], [5 + group]]
        assert layout.block_tables[0].tolist() == [tens, tens + 1, tens + 2]
        assert layout.block_tables.flags.c_contiguous  # native kernels read rows one by one
        slots = [4 * (tens + 1) + 2, 4 * (tens + 1) + 3, 4 * (tens + 2), 4 * (5 + group)]
        assert inputs.slot_mappings[group].tolist() == [*slots, 4 * (5 + group) + 1]
    assert inputs.slot_mappings.is_contiguous()


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("are_sampled", [[True] * 4, [True, False, True, True]])
def test_decodes_alone_are_what_they_are_beside_a_prompt(
    num_groups: int, are_sampled: list[bool]
) -> None:
    batch = InputBatch(6, 64, 4, torch.float32, torch.device("cpu"), num_groups)
    starts, slots = [0, 7, 33, 63], [5, 0, 3, 2]
    blocks = iter(range(1, 1000))
    decodes = [
        ScheduledSequence(slot, start, 1, [next(blocks) for _ in range(16 * num_groups)], sampled)
        for slot, start, sampled in zip(slots, starts, are_sampled, strict=True)
    ]
    prompt = ScheduledSequence(1, 0, 2, [next(blocks) for _ in range(num_groups)], True)
    plan = StepPlan(1, [11, 12, 13, 14, 15, 16], [*decodes, prompt], [], [])
    batch.apply(plan)
    beside = batch.build(plan)
    alone = batch.build(StepPlan(2, [11, 12, 13, 14], decodes, [], []))
    assert alone.token_ids.tolist() == beside.token_ids[:4].tolist()
    assert alone.positions.tolist() == beside.positions[:4].tolist()
    assert alone.slot_mappings.equal(beside.slot_mappings[:, :4])
    assert alone.slot_mappings.dtype == beside.slot_mappings.dtype
    assert alone.sampled_rows.tolist() == beside.sampled_rows[:-1].tolist()
    assert alone.sampled_slots == beside.sampled_slots[:-1]
    assert alone.drafts is beside.drafts is None
    assert alone.first_rows == beside.first_rows[:4]
    for mine, ours in zip(alone.layouts, beside.layouts, strict=True):
        assert mine.block_tables.tolist() == ours.block_tables[:4].tolist()
        assert mine.block_tables.flags.c_contiguous
        assert mine.query_lens.tolist() == ours.query_lens[:4].tolist()
        assert mine.context_lens.tolist() == ours.context_lens[:4].tolist()
        assert mine.query_lens.dtype == mine.context_lens.dtype == ours.query_lens.dtype
