"""From a StepPlan to a step's input tensors, over block tables that persist from step to step.

Plans carry only what is new; the tables here remember the rest, one row a slot. Everything per
token is array arithmetic. Owned by the ModelRunner's thread; each rank keeps its own copy and all
stay equal, since all see the same plans.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.attention.base import BatchLayout, IntArray
from worker.attention.upload import upload
from worker.engine.step import ScheduledSequence, StepPlan
from worker.layers.shard import divide_up


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tensors. T tokens, S sampled sequences, D guesses to verify, G KV groups."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mappings: Tensor  # [G, T] int64
    layouts: list[BatchLayout]  # of each group: they differ in their block tables
    sampled_rows: Tensor  # [S + D] int64: the tokens whose successors are sampled
    sampled_slots: list[int]  # [S]
    drafts: list[list[int]] | None  # [S] each sequence's guesses; None: D is 0
    first_rows: list[int]  # per sequence: its first token


class InputBatch:
    """Block tables by KV group and slot.

    Invariant: a row is filled exactly as far as its sequence's blocks, in all groups alike.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        num_groups: int = 1,
    ) -> None:
        width = divide_up(max_model_len, block_size)
        self._max_model_len, self._block_size = max_model_len, block_size
        self._dtype, self._device = dtype, device
        self._num_groups = num_groups
        self._tables = np.zeros((num_groups, max_num_seqs, width), dtype=np.int32)
        self._num_blocks = [0] * max_num_seqs  # of each group
        self._rows = np.arange(max_num_seqs)
        self._ones = np.ones(max_num_seqs, dtype=np.int32)

    def apply(self, plan: StepPlan) -> None:
        """Takes over the plan's changes of slots and tables; before `build`."""
        for slot in plan.released:
            self._num_blocks[slot] = 0
        for admitted in plan.admitted:
            self._num_blocks[admitted.slot] = 0
        for sequence in plan.sequences:
            if sequence.new_block_ids:
                self._append(sequence.slot, sequence.new_block_ids)

    def _append(self, slot: int, block_ids: list[int]) -> None:
        """block_ids: one of each group after another, place by place."""
        start, num_groups = self._num_blocks[slot], self._num_groups
        stop = start + len(block_ids) // num_groups
        for group, tables in enumerate(self._tables):
            tables[slot, start:stop] = block_ids[group::num_groups]
        self._num_blocks[slot] = stop

    def build(self, plan: StepPlan) -> StepInputs:
        """The plan must schedule at least one token."""
        if all(sequence.num_tokens == 1 for sequence in plan.sequences):
            return self._build_decodes(plan)
        slots, starts, lens = _columns(plan.sequences)
        context_lens = starts + lens
        longest = int(context_lens.max())
        ends = np.cumsum(lens)
        # Native kernels read by these numbers, and check none of them.
        assert longest <= self._max_model_len, f"a sequence of {longest} tokens"
        assert lens.min() > 0 and ends[-1] == len(plan.token_ids), "lengths of other tokens"
        # [G, R, W]; as it comes out of the index only a single group's is contiguous.
        tables = self._tables[:, slots, : divide_up(longest, self._block_size)]
        tables = np.ascontiguousarray(tables)
        firsts = ends - lens
        rows = np.repeat(np.arange(len(slots)), lens)  # [T] sequence of each token
        positions = np.arange(ends[-1]) + (starts - firsts)[rows]
        blocks = tables[:, rows, positions // self._block_size].astype(np.int64)
        slot_mappings = blocks * self._block_size + positions % self._block_size
        slot_mappings = np.ascontiguousarray(slot_mappings)
        drafts, sampled_rows = _drafts(plan, ends)
        token_ids = np.array(plan.token_ids, dtype=np.int64)
        arrays = upload([token_ids, positions, slot_mappings, sampled_rows], self._device)
        return StepInputs(
            token_ids=arrays[0],
            positions=arrays[1],
            slot_mappings=arrays[2],
            layouts=self._layouts(lens.astype(np.int32), context_lens.astype(np.int32), tables),
            sampled_rows=arrays[3],
            sampled_slots=[s.slot for s in plan.sequences if s.is_sampled],
            drafts=drafts,
            first_rows=firsts.tolist(),
        )

    def _build_decodes(self, plan: StepPlan) -> StepInputs:
        """As `build`, of sequences with one token each, in half the operations. After a step's
        weights have gone through the caches every one of them costs a CPU some 5 us.
        """
        sequences = plan.sequences
        num_rows = len(sequences)
        starts = [sequence.start for sequence in sequences]
        longest = max(starts) + 1
        assert longest <= self._max_model_len, f"a sequence of {longest} tokens"
        assert num_rows == len(plan.token_ids), "lengths of other tokens"
        slots = np.array([sequence.slot for sequence in sequences], dtype=np.int64)
        tables = self._tables[:, slots, : divide_up(longest, self._block_size)]
        tables = np.ascontiguousarray(tables)
        positions = np.array(starts, dtype=np.int64)
        rows = self._rows[:num_rows]
        blocks = tables[:, rows, positions // self._block_size]
        slot_mappings = np.multiply(blocks, self._block_size, dtype=np.int64)
        slot_mappings += positions % self._block_size
        sampled_rows = rows
        if not all(sequence.is_sampled for sequence in sequences):
            sampled_rows = rows[[sequence.is_sampled for sequence in sequences]]
        token_ids = np.array(plan.token_ids, dtype=np.int64)
        arrays = upload([token_ids, positions, slot_mappings, sampled_rows], self._device)
        context_lens = (positions + 1).astype(np.int32)
        return StepInputs(
            token_ids=arrays[0],
            positions=arrays[1],
            slot_mappings=arrays[2],
            layouts=self._layouts(self._ones[:num_rows], context_lens, tables),
            sampled_rows=arrays[3],
            sampled_slots=[s.slot for s in sequences if s.is_sampled],
            drafts=None,
            first_rows=list(range(num_rows)),
        )

    def _layouts(
        self, query_lens: IntArray, context_lens: IntArray, tables: IntArray
    ) -> list[BatchLayout]:
        """tables: [G, R, W]"""
        return [
            BatchLayout(
                query_lens, context_lens, group, self._block_size, self._dtype, self._device
            )
            for group in tables
        ]


def _columns(sequences: list[ScheduledSequence]) -> npt.NDArray[np.int64]:
    """Slots, starts and lengths: [3, R]."""
    rows = [(s.slot, s.start, s.num_tokens) for s in sequences]
    return np.ascontiguousarray(np.array(rows, dtype=np.int64).T)


def _drafts(
    plan: StepPlan, ends: npt.NDArray[np.int64]
) -> tuple[list[list[int]] | None, npt.NDArray[np.int64]]:
    """The guesses of each sampled sequence, and the rows whose successors are sampled."""
    sequences = plan.sequences
    if not any(sequence.num_drafts for sequence in sequences):
        return None, ends[[sequence.is_sampled for sequence in sequences]] - 1
    drafts: list[list[int]] = []
    rows: list[int] = []
    for sequence, end in zip(sequences, ends.tolist(), strict=True):
        if sequence.is_sampled:
            first = end - sequence.num_drafts
            drafts.append(plan.token_ids[first:end])
            rows.extend(range(first - 1, end))
    return drafts, np.array(rows, dtype=np.int64)
