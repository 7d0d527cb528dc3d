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

from worker.attention.base import BatchLayout
from worker.engine.step import ScheduledSequence, StepPlan
from worker.layers.shard import divide_up


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tensors. T tokens, S sampled sequences, D guesses to verify."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    layout: BatchLayout
    sampled_rows: Tensor  # [S + D] int64: the tokens whose successors are sampled
    sampled_slots: list[int]  # [S]
    drafts: list[list[int]] | None  # [S] each sequence's guesses; None: D is 0
    first_rows: list[int]  # per sequence: its first token


class InputBatch:
    """Block tables by slot. Invariant: a row is filled exactly as far as its sequence's blocks."""

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        width = divide_up(max_model_len, block_size)
        self._max_model_len, self._block_size = max_model_len, block_size
        self._dtype, self._device = dtype, device
        self._tables = np.zeros((max_num_seqs, width), dtype=np.int32)
        self._num_blocks = [0] * max_num_seqs

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
        start = self._num_blocks[slot]
        stop = start + len(block_ids)
        self._tables[slot, start:stop] = block_ids
        self._num_blocks[slot] = stop

    def build(self, plan: StepPlan) -> StepInputs:
        """The plan must schedule at least one token."""
        slots, starts, lens = _columns(plan.sequences)
        context_lens = starts + lens
        longest = int(context_lens.max())
        ends = np.cumsum(lens)
        # Native kernels read by these numbers, and check none of them.
        assert longest <= self._max_model_len, f"a sequence of {longest} tokens"
        assert lens.min() > 0 and ends[-1] == len(plan.token_ids), "lengths of other tokens"
        tables = self._tables[slots, : divide_up(longest, self._block_size)]
        firsts = ends - lens
        rows = np.repeat(np.arange(len(slots)), lens)  # [T] sequence of each token
        positions = np.arange(ends[-1]) + (starts - firsts)[rows]
        blocks = tables[rows, positions // self._block_size].astype(np.int64)
        slot_mapping = blocks * self._block_size + positions % self._block_size
        drafts, sampled_rows = _drafts(plan, ends)
        return StepInputs(
            token_ids=self._tensor(np.array(plan.token_ids, dtype=np.int64)),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slot_mapping),
            layout=BatchLayout(
                query_lens=lens.astype(np.int32),
                context_lens=context_lens.astype(np.int32),
                block_tables=tables,
                block_size=self._block_size,
                dtype=self._dtype,
                device=self._device,
            ),
            sampled_rows=self._tensor(sampled_rows),
            sampled_slots=[s.slot for s in plan.sequences if s.is_sampled],
            drafts=drafts,
            first_rows=firsts.tolist(),
        )

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


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
