"""How a model's layers call attention: what plans over fixed memory are made for.

Found by watching the model compute one token. Called by the ModelRunner for `cuda_graphs.py`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.attention.base import (
    AttentionBackend,
    AttentionKind,
    AttentionPlan,
    BatchLayout,
    ForwardContext,
    LayerKVCache,
)
from worker.models.decoder import Decoder

PlanKey = tuple[AttentionKind, int]  # a kind of attention, and the group of its layers' caches


@dataclass(frozen=True, slots=True)
class AttentionUse:
    """How layers of one kind and group call attention."""

    kind: AttentionKind
    q: Tensor  # [T, heads, head_dim]
    cache: LayerKVCache


def lone_layout(block_size: int, dtype: torch.dtype, device: torch.device) -> BatchLayout:
    """Of one token, in block 0."""
    one, table = np.ones(1, dtype=np.int32), np.zeros((1, 1), dtype=np.int32)
    return BatchLayout(one, one, table, block_size, dtype, device)


@torch.inference_mode()
def attention_uses(
    model: Decoder,
    backend: AttentionBackend,
    kv_caches: list[LayerKVCache],
    num_groups: int,
    layout: BatchLayout,
) -> dict[PlanKey, AttentionUse]:
    """`layout`: of a lone token in block 0, which is written to. Collective."""
    uses: dict[PlanKey, AttentionUse] = {}
    zero = torch.zeros(1, dtype=torch.int64, device=layout.device)
    ctx = ForwardContext(
        zero, [zero] * num_groups, [layout] * num_groups, kv_caches, _watched(backend, uses)
    )
    model(zero, ctx)
    return uses


def _watched(backend: AttentionBackend, uses: dict[PlanKey, AttentionUse]) -> AttentionBackend:
    """The backend, noting in `uses` how its plans are called."""

    def make(layout: BatchLayout, kind: AttentionKind) -> AttentionPlan:
        return _WatchedPlan(backend(layout, kind), kind, uses)

    return make


class _WatchedPlan:
    def __init__(
        self, plan: AttentionPlan, kind: AttentionKind, uses: dict[PlanKey, AttentionUse]
    ) -> None:
        self._plan, self._kind, self._uses = plan, kind, uses

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        self._uses[self._kind, cache.group] = AttentionUse(self._kind, q, cache)
        return self._plan.run(q, k, v, cache, sinks)
