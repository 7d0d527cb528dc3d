"""Native paged attention as an attention backend, for layers that otherwise run on torch.

Nothing is gathered: the kernels read the cache through the block tables. Owns one C++ object for
each kind of attention, which holds one plan at a time. Called by `layers/` through a
ForwardContext; set up by `worker.native.decoder`, and used by its thread only.
"""

import ctypes
import weakref

import torch
from torch import Tensor

from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.native.library import Team, destroy_with
from worker.native.packing import DTYPES
from worker.native.structs import GroupStruct, KindStruct, LayerAttentionStruct, StepStruct


class NativeAttention:
    """See `AttentionBackend`: a plan takes the place of the former one of its kind, which was of
    another step or of another group of layers.
    """

    def __init__(self, library: ctypes.CDLL, team: Team) -> None:
        self._library, self._team = library, team
        self._kinds: dict[AttentionKind, _Kind] = {}

    def __call__(self, layout: BatchLayout, kind: AttentionKind) -> "NativePlan":
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind(self._library, self._team, kind)
        return NativePlan(known, layout)


class _Kind:
    """One kind's C++ object, freed before the team that it computes with."""

    def __init__(self, library: ctypes.CDLL, team: Team, kind: AttentionKind) -> None:
        """Raises: MemoryError."""
        self.library, self.kind = library, kind
        self.held: weakref.ref[NativePlan] | None = None  # the plan that the object was built for
        self.slopes = (
            torch.tensor(kind.alibi_slopes, dtype=torch.float32) if kind.alibi_slopes else None
        )
        self.handle: int = library.shoal_attention_create(team.handle)
        if not self.handle:
            raise MemoryError("no memory for native attention")
        destroy_with(self, _destroy, library, self.handle, team)


class NativePlan:
    """See `AttentionPlan`. Built when a layer runs it, for that layer's shapes, which are those of
    all layers of its kind; again if another group's was built since: what sequences share is a
    group's own.
    """

    def __init__(self, kind: _Kind, layout: BatchLayout) -> None:
        self._kind, self._layout = kind, layout

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        """Raises: MemoryError when a step's buffers cannot be had."""
        held = self._kind.held
        if held is None or held() is not self:
            self._build(q, cache)
        kind = self._kind.kind
        rows = _rows(q)
        wide_sinks = None if sinks is None else sinks.float()
        out = torch.empty(q.shape, dtype=cache.k.dtype)
        struct = LayerAttentionStruct(
            dtype=DTYPES[cache.k.dtype],
            scale=q.shape[-1] ** -0.5 if kind.scale is None else kind.scale,
            soft_cap=kind.soft_cap or 0.0,
            alibi_slopes=_address(self._kind.slopes),
            sinks=_address(wide_sinks),
            q=rows.data_ptr(),
            q_stride=rows.stride(0),
            k_cache=cache.k.data_ptr(),
            v_cache=cache.v.data_ptr(),
            out=out.data_ptr(),
            out_stride=out.stride(0),
            block_tables=self._layout.block_tables.ctypes.data,
        )
        self._kind.library.shoal_attention_run(self._kind.handle, ctypes.byref(struct))
        return out

    def _build(self, q: Tensor, cache: LayerKVCache) -> None:
        _, num_heads, head_dim = q.shape
        layout, window = self._layout, self._kind.kind.window or 0
        group = GroupStruct(block_tables=layout.block_tables.ctypes.data)
        terms = KindStruct(num_heads, cache.k.shape[2], head_dim, layout.block_size, window)
        step = StepStruct(
            groups=ctypes.pointer(group),
            query_lens=layout.query_lens.ctypes.data,
            context_lens=layout.context_lens.ctypes.data,
            num_tokens=len(q),
            num_sequences=len(layout.query_lens),
            table_width=layout.block_tables.shape[1],
        )
        self._kind.held = None
        begin = self._kind.library.shoal_attention_begin
        if not begin(self._kind.handle, ctypes.byref(terms), ctypes.byref(step)):
            raise MemoryError(f"no memory for the attention of {len(q)} tokens")
        self._kind.held = weakref.ref(self)


def _rows(q: Tensor) -> Tensor:
    """fp32 with heads side by side, as the kernels read queries. q: [T, heads, head_dim]"""
    is_side_by_side = q.stride(2) == 1 and q.stride(1) == q.shape[2]
    return q if q.dtype == torch.float32 and is_side_by_side else q.float().contiguous()


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _destroy(library: ctypes.CDLL, handle: int, team: Team) -> None:
    library.shoal_attention_destroy(handle)
    del team
