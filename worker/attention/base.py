"""Paged attention: the seam between layers and backends, and what one step's attention works on.

The KV cache of a layer is two tensors of blocks; a block table says which blocks hold a sequence's
tokens (PagedAttention, Kwon et al. 2023, section 4). A backend turns a step's layout into a plan
once; every layer of the same kind runs that plan. Called by `layers/attention.py`, set up by
the runner.
"""

from collections.abc import Callable, Sequence
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
    model. `group`: whose block tables say where this layer's tokens are; layers of other groups may
    have theirs in other blocks of the same tensors.
    """

    __slots__ = ("_k_slots", "_v_slots", "group", "k", "v")

    def __init__(self, k: Tensor, v: Tensor, group: int = 0) -> None:
        self.k, self.v, self.group = k, v, group
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
    # Leading numbers of a value that are used afterwards; None: all. Others need not be returned.
    value_dim: int | None = None


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

        q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim]; returns [T, heads, head_dim], or of
        the last only the kind's `value_dim`.
        sinks: [heads], the score of a further place that all tokens see and that holds zeros.
        """
        ...


AttentionBackend = Callable[[BatchLayout, AttentionKind], AttentionPlan]


@dataclass(slots=True)
class ForwardContext:
    """What a forward pass needs beside the token ids. Made for one step, owned by its thread.

    Layers whose tokens are in the same blocks form a group (`worker.kv_groups`); most models have
    one. The layouts of a step differ in their block tables only.
    """

    positions: Tensor  # [T] int64
    slot_mappings: Sequence[Tensor]  # of each group: [T] int64
    layouts: Sequence[BatchLayout]  # of each group
    kv_caches: list[LayerKVCache]  # one per layer
    backend: AttentionBackend
    # Those made so far, by kind and group; captured steps bring theirs.
    plans: dict[tuple[AttentionKind, int], AttentionPlan] = field(default_factory=dict)

    def write(self, cache: LayerKVCache, k: Tensor, v: Tensor) -> None:
        """The step's keys and values of a layer; k, v: [T, kv_heads, head_dim]."""
        cache.write(self.slot_mappings[cache.group], k, v)

    def attention_plan(self, kind: AttentionKind, group: int) -> AttentionPlan:
        """The attention of layers of this kind whose caches are of this group."""
        plan = self.plans.get((kind, group))
        if plan is None:
            plan = self.plans[kind, group] = self.backend(self.layouts[group], kind)
        return plan
