"""Attention whose scores no fused operator computes: soft-capped, or with sinks.

Soft-capping: Gemma 2 (2024), section 2. Sinks: gpt-oss (2025), a learned score per head that joins
the softmax's denominator. Called by the gathered backend on histories that it has gathered.
"""

import torch
from torch import Tensor

from worker.attention.base import AttentionKind

_MAX_SCORES = 1 << 24  # fp32 numbers that a chunk's attention holds at once


def scored_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kind: AttentionKind, sinks: Tensor | None
) -> Tensor:
    """q: [B, heads, n, head_dim]; k, v: [B, heads, L, head_dim]; mask: added to the scores, [B,
    heads, n, L] or broadcast to it; sinks: [heads, n]; returns q's shape.
    """
    scale = q.shape[-1] ** -0.5 if kind.scale is None else kind.scale
    scores = (q @ k.transpose(-1, -2)).float().mul_(scale)
    if kind.soft_cap is not None:
        scores.div_(kind.soft_cap).tanh_().mul_(kind.soft_cap)
    if mask is not None:
        scores.add_(mask)
    return _weights(scores, sinks).to(v.dtype) @ v


def scored_chunk_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kind: AttentionKind, sinks: Tensor | None
) -> Tensor:
    """q: [n, heads, head_dim]; k, v: [kv_heads, L, head_dim]; mask: [1 or heads, n, L], None:
    causal and n = L; returns q's shape. Scores exist for as many queries at once as memory allows.
    """
    num_queries, num_heads, _ = q.shape
    num_rows = max(1, _MAX_SCORES // (num_heads * k.shape[1]))
    if mask is None:
        mask = _causal_mask(num_queries, q)
    parts = [
        _rows_attention(q[rows], k, v, mask[:, rows], kind, sinks)
        for rows in (slice(i, i + num_rows) for i in range(0, num_queries, num_rows))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, kind: AttentionKind, sinks: Tensor | None
) -> Tensor:
    """The query heads of one KV head stand in one matrix, so that its keys are read once."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[0]
    grouped = q.transpose(0, 1).reshape(num_kv_heads, -1, head_dim)
    mask = mask.expand(num_heads, *mask.shape[1:]).reshape(num_kv_heads, grouped.shape[1], -1)
    if sinks is not None:
        sinks = sinks.repeat_interleave(num_rows).view(num_kv_heads, -1)
    out = scored_attention(grouped[None], k[None], v[None], mask, kind, sinks)
    return out.view(num_heads, num_rows, head_dim).transpose(0, 1)


def _weights(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last dimension, the sink in its denominator. scores: [..., n, L]."""
    if sinks is None:
        return scores.softmax(dim=-1)
    column = sinks.float().unsqueeze(-1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]


def _causal_mask(size: int, like: Tensor) -> Tensor:
    """[1, size, size]: column j is seen by query i where j <= i."""
    hidden = torch.full((size, size), -torch.inf, device=like.device)
    return hidden.triu_(diagonal=1)[None]
