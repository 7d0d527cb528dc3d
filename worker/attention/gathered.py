"""Paged attention with plain torch operators, on CPUs and GPUs: gather blocks, then attend.

A step's sequences fall into two kinds. Single-token ones (decodes) run as few padded batches, in
which the query heads of one KV head stand where a kernel expects query positions, so that keys are
read once per KV head. Longer ones (prompt chunks) run one by one. All index tensors and masks are
made once a step; a layer runs tensor operators only.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.attention.base import (
    AttentionKind,
    AttentionPlan,
    BatchLayout,
    IntArray,
    LayerKVCache,
)
from worker.attention.scored import scored_attention, scored_chunk_attention
from worker.attention.upload import upload

# A batch is split when that saves gathering more padding tokens than another batch's operators cost
# (60 us a layer against 0.1-0.2 us a token, measured), and when one gather would grow beyond this.
_SPLIT_SAVES_TOKENS = 512
_MAX_GATHERED_TOKENS = 1 << 18


def gathered_attention(layout: BatchLayout, kind: AttentionKind) -> AttentionPlan:
    """The backend: see `AttentionBackend`."""
    is_decode = layout.query_lens == 1
    first_tokens = np.cumsum(layout.query_lens) - layout.query_lens
    decodes: list[_DecodeBatch] = []
    if is_decode.any():
        rows = np.flatnonzero(is_decode)
        batches = decode_batches(layout.context_lens, rows, kind.window)
        decodes = [_decode_batch(layout, batch, first_tokens, kind) for batch in batches]
    chunks = [
        _chunk(layout, int(row), int(first_tokens[row]), kind) for row in np.flatnonzero(~is_decode)
    ]
    if len(decodes) == 1 and not chunks and decodes[0].num_rows == len(is_decode):
        return _DecodePlan(decodes[0])
    return _MixedPlan(decodes, chunks)


def decode_batches(
    context_lens: IntArray, rows: np.ndarray, window: int | None
) -> list[np.ndarray]:
    """Rows of similar history, longest first, so that padding to the longest stays cheap."""
    seen = context_lens[rows]
    if window is not None:
        seen = np.minimum(seen, window)
    order = np.argsort(-seen, kind="stable")
    lens = seen[order].tolist()
    cuts, longest = [0], lens[0]
    for i, length in enumerate(lens):
        saved = (longest - length) * (len(lens) - i)
        is_full = (i - cuts[-1] + 1) * longest > _MAX_GATHERED_TOKENS
        if i > cuts[-1] and (saved > _SPLIT_SAVES_TOKENS or is_full):
            cuts.append(i)
            longest = length
    if len(cuts) == 1:
        return [rows]  # in the step's order: the whole batch then needs no reordering
    return [rows[part] for part in np.split(order, cuts[1:])]


@dataclass(frozen=True, slots=True)
class _DecodeBatch:
    """B single-token sequences, padded to N blocks each."""

    num_rows: int  # B
    tokens: Tensor  # [B] int64, indices into the step's tokens
    block_ids: Tensor  # [B * N] int32
    mask: Tensor | None  # [B, 1 or heads, N * block_size], added to scores; None: all is seen
    kind: AttentionKind

    def attend(self, q: Tensor, cache: LayerKVCache, sinks: Tensor | None) -> Tensor:
        """q: [B, heads, head_dim]; returns the same shape."""
        num_kv_heads = cache.k.shape[2]
        grouped = q.view(self.num_rows, num_kv_heads, -1, q.shape[-1])
        k = _gather(cache.k, self.block_ids, self.num_rows)
        v = k if cache.v is cache.k else _gather(cache.v, self.block_ids, self.num_rows)
        mask = self.mask
        if mask is not None:  # one row for all heads, or one per head in the same order as q's
            mask = mask.view(self.num_rows, min(mask.shape[1], num_kv_heads), -1, mask.shape[2])
        if sinks is not None or self.kind.soft_cap is not None:
            by_kv_head = None if sinks is None else sinks.view(num_kv_heads, -1)
            out = scored_attention(grouped, k, v, mask, self.kind, by_kv_head)
        else:
            out = F.scaled_dot_product_attention(
                grouped, k, v, attn_mask=mask, scale=self.kind.scale
            )
        return out.reshape(q.shape)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several consecutive tokens of one sequence. n tokens, L tokens of history with them."""

    start: int  # in the step's tokens
    stop: int
    block_ids: Tensor | None  # None: the chunk is its own history
    # [1 or heads, n, L] for the chunk's tokens in reverse order; None: causal
    mask: Tensor | None
    first_seen: int  # history before this position of the gathered blocks is not read
    num_seen: int  # L
    kind: AttentionKind

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None
    ) -> Tensor:
        """q: [n, heads, head_dim]; k, v: [n, kv_heads, head_dim]; returns q's shape."""
        if self.block_ids is not None:
            seen = slice(self.first_seen, self.first_seen + self.num_seen)
            keys = _gather(cache.k, self.block_ids, 1)[:, :, seen]
            is_shared = cache.v is cache.k
            values = keys if is_shared else _gather(cache.v, self.block_ids, 1)[:, :, seen]
        else:
            keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        if self.mask is None:
            return self._attend(q, keys, values, sinks)
        return self._attend(q.flip(0), keys, values, sinks).flip(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        """k, v: [1, kv_heads, L, head_dim]."""
        if sinks is not None or self.kind.soft_cap is not None:
            return scored_chunk_attention(q, k[0], v[0], self.mask, self.kind, sinks)
        return _chunk_attention(q, k, v, self.mask, self.kind.scale)


def _chunk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """q: [n, heads, head_dim]; k, v: [1, kv_heads, L, head_dim]; no mask: causal, n = L."""
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def _gather(blocks: Tensor, block_ids: Tensor, num_rows: int) -> Tensor:
    """The history of `num_rows` sequences, as a view: [num_rows, kv_heads, tokens, head_dim]."""
    num_blocks, _, num_kv_heads, head_dim = blocks.shape
    copied = blocks.view(num_blocks, -1).index_select(0, block_ids)
    return copied.view(num_rows, -1, num_kv_heads, head_dim).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _DecodePlan:
    """A step of single tokens only, in one batch and in the step's order: nothing to pick apart."""

    batch: _DecodeBatch

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        return self.batch.attend(q, cache, sinks)


@dataclass(frozen=True, slots=True)
class _MixedPlan:
    """Any mixture of batches of single tokens and chunks."""

    decodes: list[_DecodeBatch]
    chunks: list[_Chunk]

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for batch in self.decodes:
            attended = batch.attend(q.index_select(0, batch.tokens), cache, sinks)
            out.index_copy_(0, batch.tokens, attended)
        for chunk in self.chunks:
            part = slice(chunk.start, chunk.stop)
            out[part] = chunk.attend(q[part], k[part], v[part], cache, sinks)
        return out


def _decode_batch(
    layout: BatchLayout, rows: np.ndarray, first_tokens: np.ndarray, kind: AttentionKind
) -> _DecodeBatch:
    lens = layout.context_lens[rows]
    window = kind.window
    first_seen = np.zeros_like(lens) if window is None else np.maximum(lens - window, 0)
    first_block = first_seen // layout.block_size
    num_blocks = int((-(-lens // layout.block_size) - first_block).max())
    columns = first_block[:, None] + np.arange(num_blocks, dtype=np.int32)
    columns = np.minimum(columns, layout.block_tables.shape[1] - 1)
    block_ids = np.take_along_axis(layout.block_tables[rows], columns, axis=1)
    base = first_block * layout.block_size
    return _DecodeBatch(
        num_rows=len(rows),
        tokens=_to_device(first_tokens[rows].astype(np.int64), layout),
        block_ids=_to_device(block_ids.ravel(), layout),
        mask=_decode_mask(layout, first_seen - base, lens - base, num_blocks, kind),
        kind=kind,
    )


def _decode_mask(
    layout: BatchLayout, first: np.ndarray, end: np.ndarray, num_blocks: int, kind: AttentionKind
) -> Tensor | None:
    """Row b, at gathered position end[b] - 1, sees gathered tokens first[b] .. end[b] - 1."""
    width = num_blocks * layout.block_size
    if not kind.alibi_slopes and (first == 0).all() and (end == width).all():
        return None
    columns = np.arange(width, dtype=np.int32)
    is_seen = columns < end[:, None]
    if first.any():
        is_seen &= columns >= first[:, None]
    hidden = np.where(is_seen, np.float32(0), np.float32(-np.inf))
    mask = _to_device(hidden, layout)[:, None]
    if kind.alibi_slopes:
        distances = _to_device((end[:, None] - 1 - columns).astype(np.float32), layout)
        mask = mask - _to_device(_slopes(kind), layout)[:, None] * distances[:, None]
    return mask.to(layout.dtype)


def _slopes(kind: AttentionKind) -> np.ndarray:
    """[heads] float32, or [1] where distance does not matter."""
    return np.array(kind.alibi_slopes or (0.0,), dtype=np.float32)


def _chunk(layout: BatchLayout, row: int, first_token: int, kind: AttentionKind) -> _Chunk:
    window = kind.window
    query_len, context_len = int(layout.query_lens[row]), int(layout.context_lens[row])
    stop = first_token + query_len
    first_query = context_len - query_len
    is_windowed = window is not None and context_len > window
    if first_query == 0:
        is_causal_only = not is_windowed and not kind.alibi_slopes
        mask = None if is_causal_only else _chunk_mask(layout, query_len, context_len, kind)
        return _Chunk(first_token, stop, None, mask, 0, query_len, kind)
    first_seen = 0 if window is None else max(0, first_query - window + 1)
    first_block = first_seen // layout.block_size
    last_block = -(-context_len // layout.block_size)
    block_ids = layout.block_tables[row, first_block:last_block]
    return _Chunk(
        start=first_token,
        stop=stop,
        block_ids=_to_device(np.ascontiguousarray(block_ids), layout),
        mask=_chunk_mask(layout, query_len, context_len - first_seen, kind),
        first_seen=first_seen - first_block * layout.block_size,
        num_seen=context_len - first_seen,
        kind=kind,
    )


def _chunk_mask(layout: BatchLayout, query_len: int, num_seen: int, kind: AttentionKind) -> Tensor:
    """[1 or heads, query_len, num_seen], tokens in reverse order, as a view of one row per head.

    Token i of n, at position num_seen - n + i, sees columns up to that position. With i' = n - 1 -
    i the condition is j + i' < num_seen: a function of j + i', so one row serves all, shifted by
    one each:

        i' = 0   0 0 0 0 0 0        the newest token sees all
        i' = 1   0 0 0 0 0 -
        i' = 2   0 0 0 0 - -

    A window w hides j + i' < num_seen - w in the same way, and a token's distance, which ALiBi
    weighs, is num_seen - 1 - (j + i').
    """
    width = num_seen + query_len - 1
    distances = np.arange(num_seen - 1, num_seen - 1 - width, -1, dtype=np.float32)
    rows = -_slopes(kind)[:, None] * distances
    rows[:, num_seen:] = -np.inf
    if kind.window is not None:
        rows[:, : max(0, num_seen - kind.window)] = -np.inf
    mask = _to_device(rows, layout).to(layout.dtype)
    mask = mask.as_strided((len(rows), query_len, num_seen), (width, 1, 1))
    # The fused kernels of GPUs want aligned rows.
    return mask if layout.device.type == "cpu" else mask.contiguous()


def _to_device(array: np.ndarray, layout: BatchLayout) -> Tensor:
    return upload([array], layout.device)[0]
