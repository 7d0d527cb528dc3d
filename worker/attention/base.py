"""Paged attention: the seam between layers and backends, and what one step's attention works on.

The KV cache of a layer is two tensors of blocks; a block table says which blocks hold a sequence's
tokens (PagedAttention, Kwon et al. 2023, section 4). A backend turns a step's layout into a plan
once; every layer of the same kind runs that plan. Called by `layers/attention.py`, set up by
the runner.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int32]


class LayerKVCache:
    """The keys and values of one layer. Both: [num_blocks, block_size, kv_heads, head_dim].

    Written only by the step's own tokens, before they attend. Owned by the thread that runs the
    model.
    """

    __slots__ = ("_k_slots", "_v_slots", "k", "v")

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self._k_slots = k.view(-1, *k.shape[2:])
        self._v_slots = v.view(-1, *v.shape[2:])

    def write(self, slot_mapping: Tensor, k: Tensor, v: Tensor) -> None:
        """slot_mapping: [T] int64, block_id * block_size + offset; k, v: [T, kv_heads, head_dim]"""
        self._k_slots.index_copy_(0, slot_mapping, k)
        if self.v is not self.k:  # else one tensor holds what both are made from
            self._v_slots.index_copy_(0, slot_mapping, v)


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What attention computes in a layer, beside its tensors. Layers of one kind share a plan."""

    window: int | None = None  # a token sees itself and the window - 1 tokens before it; None: all
    scale: float | None = None  # of the scores; None: head_dim ** -0.5
    soft_cap: float | None = None  # scaled scores become cap * tanh(score / cap)
    # ALiBi (Press et al. 2022): a score falls by slope * distance; one slope per head of this rank.
    alibi_slopes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Which tokens of a step belong to which sequence, and where their history lies. R sequences.

    A sequence's query tokens are its last ones: positions context_len - query_len .. context_len -
    1, and its history, these tokens included, is in the first blocks of its row. Entries beyond are
    meaningless but valid block ids.
    """

    query_lens: IntArray  # [R]
    context_lens: IntArray  # [R]
    block_tables: IntArray  # [R, W]
    block_size: int
    dtype: torch.dtype  # of queries, keys and values
    device: torch.device


class AttentionPlan(Protocol):
    """One step's attention of one kind, run once a layer."""

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        """Softmax attention; the step's k and v are in the cache.

        q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim]; returns [T, heads, head_dim].
        sinks: [heads], the score of a further place that all tokens see and that holds zeros.
        """
        ...


AttentionBackend = Callable[[BatchLayout, AttentionKind], AttentionPlan]


@dataclass(slots=True)
class ForwardContext:
    """What a forward pass needs beside the token ids. Made for one step, owned by its thread."""

    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    layout: BatchLayout
    kv_caches: list[LayerKVCache]  # one per layer
    backend: AttentionBackend
    _plans: dict[AttentionKind, AttentionPlan] = field(default_factory=dict)

    def attention_plan(self, kind: AttentionKind) -> AttentionPlan:
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = self.backend(self.layout, kind)
        return plan
