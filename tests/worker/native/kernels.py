"""The kernels' test hooks for ctypes, and steps to run them on: see `csrc/test_hooks.cc`."""

import ctypes
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache

import numpy as np
import torch
from torch import Tensor

from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.native.build import Variant, usable_variants
from worker.native.library import load_library
from worker.native.structs import NormStruct, QKVStruct

VARIANTS = usable_variants()
VARIANT_NAMES = [variant.name for variant in VARIANTS]


class AttentionStruct(ctypes.Structure):
    """ShoalTestAttention."""

    _fields_ = (
        ("is_bf16", c_int32),
        ("num_threads", c_int32),
        ("num_repeats", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("window", c_int32),
        ("num_sequences", c_int32),
        ("table_width", c_int32),
        ("query_lens", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("alibi_slopes", c_void_p),
        ("sinks", c_void_p),
    )


_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "shoal_test_attention": (c_double, [POINTER(AttentionStruct)]),
    "shoal_test_attention_units": (c_int, [POINTER(AttentionStruct), c_void_p]),
    "shoal_test_function": (None, [c_int, c_void_p, c_int, c_void_p]),
    "shoal_test_norm": (None, [POINTER(NormStruct), c_void_p, c_int, c_int, c_void_p]),
    "shoal_test_prepare": (
        None,
        [
            POINTER(QKVStruct),
            *(c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p, c_int),
            *(c_void_p, c_void_p),
        ],
    ),
    "shoal_test_add": (None, [c_void_p, c_float, c_int, c_void_p]),
}


@cache
def kernels(name: str) -> ctypes.CDLL:
    variant: Variant = next(v for v in VARIANTS if v.name == name)
    library = load_library(variant)
    for function, (result, arguments) in _SIGNATURES.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def make_step(
    lens: list[tuple[int, int]],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    is_shared: bool = False,
    seed: int = 0,
) -> tuple[Tensor, LayerKVCache, BatchLayout]:
    """Queries, a cache and a layout of sequences with (query, context) lengths; blocks lie in any
    order, and what no sequence has written is NaN."""
    generator = torch.Generator().manual_seed(seed)
    query_lens, context_lens = np.array(lens, dtype=np.int32).T
    counts = -(-context_lens // block_size)
    num_blocks = int(counts.sum()) + 1
    order = torch.randperm(num_blocks, generator=generator).numpy().astype(np.int32)
    tables = np.full((len(lens), int(counts.max())), order[-1], dtype=np.int32)
    first = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[first : first + count]
        first += count
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    for row, context_len in enumerate(context_lens):
        unused = context_len % block_size
        if unused:
            for x in (k, v):
                x[int(tables[row, counts[row] - 1]), unused:] = torch.nan
    k[int(order[-1])] = v[int(order[-1])] = torch.nan
    q = torch.randn(int(query_lens.sum()), num_heads, head_dim, generator=generator)
    layout = BatchLayout(
        np.ascontiguousarray(query_lens),
        np.ascontiguousarray(context_lens),
        tables,
        block_size,
        dtype,
        torch.device("cpu"),
    )
    return q.to(dtype), LayerKVCache(k, k if is_shared else v), layout


def attend(
    library: ctypes.CDLL,
    q: Tensor,
    cache: LayerKVCache,
    layout: BatchLayout,
    kind: AttentionKind,
    sinks: Tensor | None = None,
    num_threads: int = 1,
    num_repeats: int = 1,
) -> Tensor:
    """What `AttentionPlan.run` returns, `num_repeats` times over."""
    out = torch.full_like(q, torch.nan)
    wide = q.float()
    slopes = torch.tensor(kind.alibi_slopes) if kind.alibi_slopes else None
    struct = _struct(q, cache, layout, kind, num_threads)
    struct.num_repeats = num_repeats
    struct.q, struct.q_stride = wide.data_ptr(), wide.stride(0)
    struct.out, struct.out_stride = out.data_ptr(), out.stride(0)
    struct.alibi_slopes, struct.sinks = address(slopes), address(sinks)
    library.shoal_test_attention(struct)
    return out


def count_units(
    library: ctypes.CDLL,
    q: Tensor,
    cache: LayerKVCache,
    layout: BatchLayout,
    kind: AttentionKind,
    other: BatchLayout | None = None,
) -> int:
    """Into how many units one thread's attention is cut; `other`: of another group of layers that
    the same plan is for."""
    tables = None if other is None else other.block_tables.ctypes.data
    struct = _struct(q, cache, layout, kind, 1)
    count: int = library.shoal_test_attention_units(struct, tables)
    return count


def _struct(
    q: Tensor, cache: LayerKVCache, layout: BatchLayout, kind: AttentionKind, num_threads: int
) -> AttentionStruct:
    _, num_heads, head_dim = q.shape
    return AttentionStruct(
        is_bf16=q.dtype == torch.bfloat16,
        num_threads=num_threads,
        num_heads=num_heads,
        num_kv_heads=cache.k.shape[2],
        head_dim=head_dim,
        block_size=layout.block_size,
        window=kind.window or 0,
        num_sequences=len(layout.query_lens),
        table_width=layout.block_tables.shape[1],
        query_lens=layout.query_lens.ctypes.data,
        context_lens=layout.context_lens.ctypes.data,
        block_tables=layout.block_tables.ctypes.data,
        k_cache=cache.k.data_ptr(),
        v_cache=cache.v.data_ptr(),
        scale=head_dim**-0.5 if kind.scale is None else kind.scale,
        soft_cap=kind.soft_cap or 0.0,
    )


def row_of(layout: BatchLayout, row: int) -> BatchLayout:
    """One sequence of a batch, by itself."""
    rows = slice(row, row + 1)
    return BatchLayout(
        layout.query_lens[rows],
        layout.context_lens[rows],
        np.ascontiguousarray(layout.block_tables[rows]),
        layout.block_size,
        layout.dtype,
        layout.device,
    )
