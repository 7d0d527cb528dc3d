"""Native paged attention against torch's and against the machine, alternating within one run.

    python -m benchmarks.native_attention [--num-threads 2] [--dtype bfloat16]

Decodes: bytes of keys and values read a second, beside reading memory in sequence and the torch
backend (gather, then `scaled_dot_product_attention`); then decodes with a common prefix, beside
those that have the same tokens in blocks of their own. Prompts: operations of the two products that
causality leaves, beside torch and the best product of large matrices. Caches change from run to
run, as layers' do. Figures are the best of several tries; compare within a run only.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from benchmarks.native import Bench, best_s
from worker.attention.base import AttentionBackend, AttentionKind, BatchLayout, LayerKVCache
from worker.attention.gathered import gathered_attention
from worker.layers.zeros import zeros
from worker.native.attention import NativeAttention

HEADS = ((9, 3, 64), (14, 2, 64), (32, 8, 128), (12, 12, 64))  # heads, KV heads, head_dim
DECODES = ((1, 8192), (8, 1500), (32, 200))  # sequences, context
SHARED_DECODES = ((8, 1024, 64), (32, 1024, 64))  # sequences, common and own keys
PROMPT_LENS = (512, 1500)
_BLOCK_SIZE = 16
_CACHE_BYTES = 384 << 20  # of all layers together: beyond the caches of the CPU
_TRIES = 7


def make_layers(
    layout: BatchLayout, num_blocks: int, num_kv_heads: int, head_dim: int
) -> list[LayerKVCache]:
    shape = (num_blocks, _BLOCK_SIZE, num_kv_heads, head_dim)
    layer_bytes = 2 * int(np.prod(shape)) * layout.dtype.itemsize
    count = min(16, max(2, _CACHE_BYTES // layer_bytes))
    first = torch.randn(shape).to(layout.dtype)

    def filled() -> Tensor:
        return zeros(shape, layout.dtype, layout.device).copy_(first)

    return [LayerKVCache(filled(), filled()) for _ in range(count)]


def make_layout(lens: list[tuple[int, int]], dtype: torch.dtype) -> tuple[BatchLayout, int]:
    """Of sequences with (query, context) lengths; blocks lie in any order."""
    query_lens, context_lens = np.array(lens, dtype=np.int32).T
    width = -(-int(context_lens.max()) // _BLOCK_SIZE)
    num_blocks = width * len(lens)
    order = torch.randperm(num_blocks, dtype=torch.int32).numpy()
    layout = BatchLayout(
        np.ascontiguousarray(query_lens),
        np.ascontiguousarray(context_lens),
        order.reshape(len(lens), width),
        _BLOCK_SIZE,
        dtype,
        torch.device("cpu"),
    )
    return layout, num_blocks


def layer_run(
    backend: AttentionBackend, layout: BatchLayout, q: Tensor, layers: list[LayerKVCache]
) -> Callable[[], object]:
    """One layer's attention, of another layer each time. The step's new keys lie in the cache."""
    plan, turns = backend(layout, AttentionKind()), cycle(layers)
    num_kv_heads = layers[0].k.shape[2]
    new = torch.randn(q.shape[0], num_kv_heads, q.shape[2]).to(q.dtype)
    return lambda: plan.run(q, new, new, next(turns))


def measure(
    bench: Bench,
    lens: list[tuple[int, int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    limit: Callable[[], object],
) -> dict[str, float]:
    num_heads, num_kv_heads, head_dim = heads
    layout, num_blocks = make_layout(lens, dtype)
    layers = make_layers(layout, num_blocks, num_kv_heads, head_dim)
    q = torch.randn(int(layout.query_lens.sum()), num_heads, head_dim).to(dtype)
    native = NativeAttention(bench.library, bench.team)
    runs = {
        "native": layer_run(native, layout, q, layers),
        "torch": layer_run(gathered_attention, layout, q, layers),
        "limit": limit,
    }
    return best_s(runs, _TRIES)


def decodes(bench: Bench, dtype: torch.dtype) -> None:
    for heads in HEADS:
        _, num_kv_heads, head_dim = heads
        for count, context_len in DECODES:
            seconds = measure(bench, [(1, context_len)] * count, heads, dtype, bench.read)
            num_bytes = 2 * count * context_len * num_kv_heads * head_dim * dtype.itemsize
            read = bench.memory.nbytes / seconds["limit"] / 1e9
            native, torch_ = (num_bytes / seconds[name] / 1e9 for name in ("native", "torch"))
            print(
                f"{_shape(heads)} {count:3} x {context_len:5}: native {native:5.1f} GB/s "
                f"({native / read:4.0%} of {read:.1f}), torch {torch_:5.1f}",
                flush=True,
            )


def shared_decodes(bench: Bench, dtype: torch.dtype) -> None:
    for heads in HEADS:
        for count, num_common, num_own in SHARED_DECODES:
            layout, num_blocks = make_layout([(1, num_common + num_own)] * count, dtype)
            layers = make_layers(layout, num_blocks, *heads[1:])
            q = torch.randn(count, heads[0], heads[2]).to(dtype)
            # Each has a backend of its own: two plans of one would be built in turns.
            runs = {
                name: layer_run(NativeAttention(bench.library, bench.team), some, q, layers)
                for name, some in {
                    "shared": with_prefix(layout, num_common),
                    "apart": layout,
                }.items()
            }
            us = {name: seconds * 1e6 for name, seconds in best_s(runs, _TRIES).items()}
            print(
                f"{_shape(heads)} {count:3} x ({num_common} common + {num_own}): "
                f"shared {us['shared']:6.0f} us, apart {us['apart']:6.0f} us",
                flush=True,
            )


def with_prefix(layout: BatchLayout, num_keys: int) -> BatchLayout:
    """The sequences' first keys are the first sequence's."""
    tables = layout.block_tables.copy()
    tables[:, : num_keys // _BLOCK_SIZE] = tables[0, : num_keys // _BLOCK_SIZE]
    return replace(layout, block_tables=tables)


def prompts(bench: Bench, dtype: torch.dtype) -> None:
    square = torch.randn(1024, 1024)
    for heads in HEADS:
        num_heads, _, head_dim = heads
        for length in PROMPT_LENS:
            product = partial(torch.mm, square, square)
            seconds = measure(bench, [(length, length)], heads, dtype, product)
            gflop = 2e-9 * 2 * head_dim * num_heads * length * (length + 1) / 2
            best = 2e-9 * 1024**3 / seconds["limit"]
            native, torch_ = (gflop / seconds[name] for name in ("native", "torch"))
            print(
                f"{_shape(heads)} prompt of {length:4}: native {native:4.0f} GFLOP/s "
                f"({native / best:4.0%} of torch's fp32 product's {best:.0f}), torch {torch_:4.0f}",
                flush=True,
            )


def _shape(heads: tuple[int, int, int]) -> str:
    return "{:2} heads, {:2} of keys, {:3} wide".format(*heads)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Native paged attention.")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    bench = Bench(options.num_threads)
    dtype: torch.dtype = getattr(torch, options.dtype)
    decodes(bench, dtype)
    shared_decodes(bench, dtype)
    prompts(bench, dtype)


if __name__ == "__main__":
    main()
