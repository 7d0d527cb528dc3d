"""The `triton` backend: attention by our own kernels, straight from the paged cache, for all kinds.

A step's sequences form up to three launches: decodes, short continuations, prompts. Work lists are
made on the host once a step, kind and head sizes, and go to the device in one copy; a layer only
launches. Decode steps under CUDA graphs: `triton_static.py`. Kernels and tile sizes:
`triton_kernels.py`, `triton_tiles.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from worker.attention.base import AttentionKind, BatchLayout, IntArray, LayerKVCache
from worker.attention.triton_kernels import merge_kernel, paged_attention_kernel
from worker.attention.triton_tiles import (
    Heads,
    TileShape,
    head_parts,
    longest_narrow,
    narrow_tile,
    num_processors,
    wide_tile,
)
from worker.attention.triton_work import Cut, Sequences, Work, cut_work, flat_tables
from worker.attention.upload import upload

_LOG2_E = 1.4426950408889634
_MERGED_NUMBERS = 4096  # that a merging program reads at once: 32 a thread


class TritonPlan:
    """One step's attention of one kind: see `AttentionPlan`. Made for a layout, run by layers."""

    is_capturable = True  # `triton_static.StaticDecode` computes the same in CUDA graphs

    def __init__(self, layout: BatchLayout, kind: AttentionKind) -> None:
        self._layout, self._kind = layout, kind
        self._launches: dict[Heads, list[Launch]] = {}

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        heads = heads_of(q, cache, self._kind)
        launches = self._launches.get(heads)
        if launches is None:
            launches = self._launches[heads] = launches_of(self._layout, self._kind, heads)
        return run_launches(launches, heads, q, cache, sinks)


def heads_of(q: Tensor, cache: LayerKVCache, kind: AttentionKind) -> Heads:
    """q: [T, heads, head_dim]."""
    return Heads(
        num_heads=q.shape[1],
        num_kv_heads=cache.k.shape[2],
        dim=q.shape[2],
        value_dim=kind.value_dim or q.shape[2],
        itemsize=q.element_size(),
        is_shared=cache.v is cache.k,
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """Tiles of one shape and their work, on the device."""

    kind: AttentionKind
    heads: Heads
    shape: TileShape
    is_chunk: bool  # see the kernel
    num_items: int
    num_tiles: int
    items: Tensor  # [>= num_items, ITEM_FIELDS] int32
    tiles: Tensor  # [>= num_tiles, TILE_FIELDS] int32
    tables: Tensor  # flat, int32
    parts: "Parts | None"  # None: no tile is in pieces

    def run(self, q: Tensor, cache: LayerKVCache, sinks: Tensor | None, out: Tensor) -> None:
        self._attend(q, cache, sinks, out)
        if self.parts is not None:
            self._merge(self.parts, sinks, out)

    def _attend(self, q: Tensor, cache: LayerKVCache, sinks: Tensor | None, out: Tensor) -> None:
        kind, heads, shape = self.kind, self.heads, self.shape
        main, rest = head_parts(heads.dim)
        parts = self.parts or _no_parts(q.device)
        score_scale, cap_scale = _scales(kind, heads)
        k, v = cache.k, cache.v
        paged_attention_kernel[(self.num_items * shape.lanes,)](
            out,
            parts.values,
            parts.lse,
            q,
            k,
            v,
            self.items,
            self.tables,
            _slopes(kind.alibi_slopes, q.device) if kind.alibi_slopes else parts.lse,
            q if sinks is None else sinks,
            score_scale,
            cap_scale,
            out.stride(0),
            q.stride(0),
            q.stride(1),
            *k.stride()[:3],
            *v.stride()[:3],
            BLOCK_M=shape.block_m,
            BLOCK_N=shape.block_n,
            GROUP=heads.group,
            HEADS=shape.heads,
            LANES=shape.lanes,
            PAGE=k.shape[1],
            DIM=heads.dim,
            VALUE_DIM=heads.value_dim,
            MAIN=main,
            REST=rest,
            WINDOW=kind.window or 0,
            HAS_ALIBI=bool(kind.alibi_slopes),
            HAS_SOFT_CAP=kind.soft_cap is not None,
            HAS_SINKS=sinks is not None,
            V_IS_K=heads.is_shared,
            IS_CHUNK=self.is_chunk,
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )

    def _merge(self, parts: "Parts", sinks: Tensor | None, out: Tensor) -> None:
        heads, shape = self.heads, self.shape
        padded_dim = triton.next_power_of_2(heads.value_dim)
        merge_kernel[(self.num_tiles * shape.tokens * heads.num_heads,)](
            out,
            parts.values,
            parts.lse,
            self.tiles,
            out if sinks is None else sinks,
            out.stride(0),
            TILE_TOKENS=shape.tokens,
            NUM_HEADS=heads.num_heads,
            BLOCK_M=shape.block_m,
            GROUP=heads.group,
            HEADS=shape.heads,
            LANES=shape.lanes,
            VALUE_DIM=heads.value_dim,
            PADDED_DIM=padded_dim,
            HAS_SINKS=sinks is not None,
            AT_ONCE=max(_MERGED_NUMBERS // padded_dim, 1),
            num_warps=4,
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What programs leave of tiles in pieces; all layers use the same memory, one after another."""

    values: Tensor  # [pieces, lanes, block_m, value_dim] fp32
    lse: Tensor  # [pieces, lanes, block_m] fp32, in base 2

    @classmethod
    def empty(
        cls, num_pieces: int, shape: TileShape, heads: Heads, device: torch.device
    ) -> "Parts":
        size = (num_pieces, shape.lanes, shape.block_m)
        values = torch.empty((*size, heads.value_dim), dtype=torch.float32, device=device)
        return cls(values, torch.empty(size, dtype=torch.float32, device=device))


def run_launches(
    launches: list[Launch], heads: Heads, q: Tensor, cache: LayerKVCache, sinks: Tensor | None
) -> Tensor:
    """q: [T, heads, dim]; returns [T, heads, value_dim]."""
    assert q.stride(-1) == cache.k.stride(-1) == cache.v.stride(-1) == 1, "heads in memory order"
    out = q.new_empty((q.shape[0], heads.num_heads, heads.value_dim))
    for launch in launches:
        launch.run(q, cache, sinks, out)
    return out


def launches_of(layout: BatchLayout, kind: AttentionKind, heads: Heads) -> list[Launch]:
    """Up to three, and their lists on the device."""
    tables, starts = flat_tables(layout.block_tables, layout.context_lens, layout.block_size)
    first_tokens = (np.cumsum(layout.query_lens) - layout.query_lens).astype(np.int32)
    sequences = Sequences(layout.query_lens, layout.context_lens, first_tokens, starts)
    works: list[tuple[TileShape, bool, Work]] = []
    for rows, shape, is_chunk in _tiled(layout.query_lens, heads):
        cut = cut_of(shape, layout.device)
        works.append((shape, is_chunk, cut_work(sequences.take(rows), kind.window, cut)))
    arrays = [array for _, _, work in works for array in (work.items, work.tiles)]
    on_device = upload([tables, *arrays], layout.device)
    launches = []
    for i, (shape, is_chunk, work) in enumerate(works):
        items, tiles = on_device[1 + 2 * i : 3 + 2 * i]
        num_items = len(work.items)
        parts = None
        if work.num_pieces:
            parts = Parts.empty(work.num_pieces, shape, heads, layout.device)
        launch = Launch(
            kind, heads, shape, is_chunk, num_items, len(work.tiles),
            items, tiles, on_device[0], parts,
        )  # fmt: skip
        launches.append(launch)
    return launches


def _tiled(
    query_lens: IntArray, heads: Heads
) -> Iterator[tuple[npt.NDArray[np.intp], TileShape, bool]]:
    """Which sequences run in tiles of which shape, and whether these are for chunks: decodes apart
    from guesses to verify, whose tiles have more rows, and both apart from prompts.
    """
    longest = longest_narrow(heads)
    classes = np.where(query_lens == 1, 0, np.where(query_lens <= longest, 1, 2))
    for number, query_len in enumerate((1, longest, None)):
        rows = np.flatnonzero(classes == number)
        if len(rows):
            shape = wide_tile(heads) if query_len is None else narrow_tile(heads, query_len)
            yield rows, shape, query_len is None


def cut_of(shape: TileShape, device: torch.device) -> Cut:
    """How much the work of such tiles is cut on the device."""
    num_extra = shape.num_extra(num_processors(device))
    return Cut(shape.tokens, shape.block_n, shape.min_piece, num_extra)


def _scales(kind: AttentionKind, heads: Heads) -> tuple[float, float]:
    """What products are multiplied by, and what soft-capped scores are; the result is in base 2."""
    scale = heads.dim**-0.5 if kind.scale is None else kind.scale
    if kind.soft_cap is None:
        return scale * _LOG2_E, 1.0
    return scale / kind.soft_cap, kind.soft_cap * _LOG2_E


@lru_cache(maxsize=64)
def _slopes(slopes: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(slopes, dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _no_parts(device: torch.device) -> Parts:
    """Stands in where nothing is in pieces."""
    nothing = torch.zeros(1, dtype=torch.float32, device=device)
    return Parts(nothing, nothing)
