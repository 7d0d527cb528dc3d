"""Paged attention as its definition, token by token: what other backends are tested against."""

import torch
from torch import Tensor

from worker.attention.base import BatchLayout, LayerKVCache


class ReferencePlan:
    """Correct before anything else; computes in fp32. Far too slow to serve with."""

    def __init__(self, layout: BatchLayout, window: int | None) -> None:
        self._layout = layout
        self._window = window

    def run(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache) -> Tensor:
        out = torch.empty_like(q)
        token = 0
        for row in range(len(self._layout.query_lens)):
            query_len = int(self._layout.query_lens[row])
            context_len = int(self._layout.context_lens[row])
            for position in range(context_len - query_len, context_len):
                out[token] = self._attend(q[token], row, position, cache)
                token += 1
        return out

    def _attend(self, q: Tensor, row: int, position: int, cache: LayerKVCache) -> Tensor:
        """q: [heads, head_dim] of the token at `position`; returns the same shape."""
        first = 0 if self._window is None else max(0, position - self._window + 1)
        size = self._layout.block_size
        table = self._layout.block_tables[row]
        places = [(int(table[p // size]), p % size) for p in range(first, position + 1)]
        blocks = torch.tensor([block for block, _ in places], device=q.device)
        offsets = torch.tensor([offset for _, offset in places], device=q.device)
        group = q.shape[0] // cache.k.shape[2]
        k = cache.k[blocks, offsets].float().repeat_interleave(group, dim=1)  # [P, heads, head_dim]
        v = cache.v[blocks, offsets].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,phd->hp", q.float(), k) * q.shape[-1] ** -0.5
        return torch.einsum("hp,phd->hd", scores.softmax(dim=-1), v).to(q.dtype)
