"""Paged attention as its definition, token by token: what other backends are tested against."""

import torch
from torch import Tensor

from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache


class ReferencePlan:
    """Correct before anything else; computes in fp32. Far too slow to serve with."""

    def __init__(self, layout: BatchLayout, kind: AttentionKind) -> None:
        self._layout = layout
        self._kind = kind

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        out = torch.empty_like(q)
        token = 0
        for row in range(len(self._layout.query_lens)):
            query_len = int(self._layout.query_lens[row])
            context_len = int(self._layout.context_lens[row])
            for position in range(context_len - query_len, context_len):
                out[token] = self._attend(q[token], row, position, cache, sinks)
                token += 1
        return out

    def _attend(
        self, q: Tensor, row: int, position: int, cache: LayerKVCache, sinks: Tensor | None
    ) -> Tensor:
        """q: [heads, head_dim] of the token at `position`; returns the same shape."""
        window = self._kind.window
        first = 0 if window is None else max(0, position - window + 1)
        size = self._layout.block_size
        table = self._layout.block_tables[row]
        places = [(int(table[p // size]), p % size) for p in range(first, position + 1)]
        blocks = torch.tensor([block for block, _ in places], device=q.device)
        offsets = torch.tensor([offset for _, offset in places], device=q.device)
        group = q.shape[0] // cache.k.shape[2]
        k = cache.k[blocks, offsets].float().repeat_interleave(group, dim=1)  # [P, heads, head_dim]
        v = cache.v[blocks, offsets].float().repeat_interleave(group, dim=1)
        scale = q.shape[-1] ** -0.5 if self._kind.scale is None else self._kind.scale
        scores = torch.einsum("hd,phd->hp", q.float(), k) * scale
        if self._kind.soft_cap is not None:
            scores = self._kind.soft_cap * torch.tanh(scores / self._kind.soft_cap)
        if self._kind.alibi_slopes:
            distances = torch.arange(position - first, -1, -1, device=q.device)
            scores -= torch.tensor(self._kind.alibi_slopes, device=q.device)[:, None] * distances
        if sinks is not None:
            scores = torch.cat((scores, sinks.float()[:, None]), dim=-1)
        weights = scores.softmax(dim=-1)[:, : len(places)]
        return torch.einsum("hp,phd->hd", weights, v).to(q.dtype)
