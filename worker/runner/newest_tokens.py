"""The newest token of each slot, on the device: what a plan's unknown tokens stand for.

Every rank keeps its own, from the tokens that rank 0 has sampled. Knows slots and rows, not what
sampled or why a token is unknown. Used by the ModelRunner.
"""

import numpy as np
import torch
from torch import Tensor

from worker.attention.upload import upload
from worker.engine.step import UNKNOWN_TOKEN, StepPlan
from worker.parallel.group import TPGroup


class NewestTokens:
    """Owned by the runner's thread. Nothing here waits for the device."""

    def __init__(self, max_num_seqs: int, tp: TPGroup, device: torch.device) -> None:
        self._tp = tp
        self._device = device
        self._of_slot = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)

    def keep(self, tokens: Tensor | None, slots: list[int]) -> None:
        """What rank 0 has sampled for these slots: [S] int64 there, None elsewhere. Collective."""
        if tokens is None:
            tokens = torch.empty(len(slots), dtype=torch.int64, device=self._device)
        tokens = self._tp.broadcast(tokens)
        (at,) = upload([np.array(slots, dtype=np.int64)], self._device)
        self._of_slot.index_copy_(0, at, tokens)

    def fill(self, token_ids: Tensor, plan: StepPlan) -> None:
        """Replaces the plan's unknown tokens, in place. token_ids: [T] int64, the plan's."""
        ids = np.array(plan.token_ids, dtype=np.int64)
        rows = np.flatnonzero(ids == UNKNOWN_TOKEN)
        if not len(rows):
            return
        ends = np.cumsum([sequence.num_tokens for sequence in plan.sequences])
        slots = np.array([sequence.slot for sequence in plan.sequences], dtype=np.int64)
        places, from_slots = upload(
            [rows, slots[np.searchsorted(ends, rows, side="right")]], self._device
        )
        token_ids.index_copy_(0, places, self._of_slot.index_select(0, from_slots))
