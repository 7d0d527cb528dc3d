"""Our GPU kernels against the card's own limits, in one run: attention, experts, small operations.

    python -m benchmarks.gpu_kernels [--sweep] [--only decode prompt experts small]

Each is captured as a CUDA graph and replayed, so that launches cost what they cost in a step;
figures are medians. Limits are measured in the same run: a large copy for what is bound by memory,
a large bf16 product for what is bound by arithmetic. `--sweep` tries other tile sizes than those
that `worker/attention/triton_tiles.py` chooses. Caches and weights change from call to call and are
larger than the card's cache together.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, product

import numpy as np
import torch
from torch import Tensor

from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.attention.triton_paged import Launch, launches_of
from worker.attention.triton_tiles import Heads
from worker.layers.fused_activation import KINDS, gated
from worker.layers.fused_experts import FusedExperts
from worker.layers.fused_norm import sum_and_normed
from worker.layers.fused_qkv import rotate_and_cache
from worker.layers.rotary import Rotation

GPU = torch.device("cuda")
BF16 = torch.bfloat16
PAGE = 16
REPLAYS = 20
COLD_BYTES = 512 << 20  # of the tensors that calls take in turns
# heads, KV heads, head_dim
SHAPES = {"llama 8B": (32, 8, 128), "mpt 7B": (32, 32, 128), "qwen3 30B-A3B": (32, 4, 128)}
DECODES = ((1, 8192), (1, 131072), (64, 768), (256, 768))  # sequences, context
PROMPTS = ((1, 8192), (4, 2048))


def seconds_of(run: Callable[[], object], count: int) -> float:
    """Of one call, out of `count` captured together: the calls of one go through their tensors."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / count)
    return statistics.median(times)


def limits() -> tuple[float, float]:
    """Bytes a second of reading and writing, operations a second of a bf16 product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=GPU)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds_of(lambda: target.copy_(source), 2)
    a = torch.randn(8192, 8192, dtype=BF16, device=GPU)
    return copied, 2 * 8192**3 / seconds_of(lambda: a @ a, 2)


def attention_step(
    lens: list[tuple[int, int]], shape: tuple[int, int, int]
) -> tuple[BatchLayout, Tensor, list[LayerKVCache]]:
    heads, kv_heads, dim = shape
    query_lens, context_lens = np.array(lens, dtype=np.int32).T
    width = -(-int(context_lens.max()) // PAGE)
    blocks = torch.randperm(width * len(lens), dtype=torch.int32).numpy()
    layout = BatchLayout(
        query_lens, context_lens, blocks.reshape(len(lens), width), PAGE, BF16, GPU
    )
    q = torch.randn(int(query_lens.sum()), heads, dim, dtype=BF16, device=GPU)
    size = (len(blocks), PAGE, kv_heads, dim)
    count = max(2, COLD_BYTES // (4 * int(np.prod(size))))
    layers = [
        LayerKVCache(*(torch.randn(size, dtype=BF16, device=GPU) for _ in range(2)))
        for _ in range(min(count, 16))
    ]
    return layout, q, layers


def attention_s(launches: list[Launch], q: Tensor, layers: list[LayerKVCache]) -> float:
    turns, out = cycle(layers), torch.empty_like(q)

    def run() -> None:
        cache = next(turns)
        for launch in launches:
            launch.run(q, cache, None, out)

    return seconds_of(run, len(layers))


def show_attention(
    name: str, lens: list[tuple[int, int]], shape: tuple[int, int, int], limit: float, sweep: bool
) -> None:
    heads, kv_heads, dim = shape
    layout, q, layers = attention_step(lens, shape)
    is_decode = lens[0][0] == 1
    work = sum(
        2 * context * kv_heads * dim * 2 if is_decode else 2 * query * context * heads * dim
        for query, context in lens
    )
    unit, scale = ("GB/s", 1e9) if is_decode else ("TFLOP/s", 1e12)
    its_heads = Heads(heads, kv_heads, dim, dim, 2, is_shared=False)
    chosen = launches_of(layout, AttentionKind(), its_heads)
    variants = {"as chosen": chosen}
    if sweep:
        variants |= swept(layout, its_heads, chosen[0])
    for label, launches in variants.items():
        try:
            rate = work / attention_s(launches, q, layers)
        except Exception as error:  # a variant that does not fit is a finding, not the end
            print(f"{name} {label}: {type(error).__name__}")
            continue
        print(f"{name} {label}: {rate / scale:7.0f} {unit} ({rate / limit:4.0%})", flush=True)


def swept(layout: BatchLayout, heads: Heads, chosen: Launch) -> dict[str, list[Launch]]:
    """Other numbers of keys, stages and warps. Pieces stay multiples of the chosen keys."""
    found = {}
    for keys, stages, warps in product((32, 64, 128), (2, 3, 4, 5), (4, 8)):
        shape = replace(chosen.shape, block_n=keys, num_stages=stages, num_warps=warps)
        found[f"{keys} keys, {stages} stages, {warps} warps"] = [replace(chosen, shape=shape)]
    return found


def show_experts(num_tokens: int, copied: float, multiplied: float) -> None:
    """Of the shape of Qwen3 30B-A3B, whose layers have 128 experts of 768."""
    hidden, size, count, top_k = 2048, 768, 128, 8
    layers = [
        (
            torch.randn(count, 2 * size, hidden, dtype=BF16, device=GPU),
            torch.randn(count, hidden, size, dtype=BF16, device=GPU),
        )
        for _ in range(2)
    ]
    x = torch.randn(num_tokens, hidden, dtype=BF16, device=GPU)
    weights, ids = torch.rand(num_tokens, count, device=GPU).topk(top_k, dim=-1)
    experts, turns = FusedExperts(KINDS["silu"]), cycle(layers)
    seconds = seconds_of(lambda: experts(x, weights, ids, 0, *next(turns), None, None), 2)
    num_bytes = len(ids.unique()) * 3 * size * hidden * 2
    operations = num_tokens * top_k * 3 * size * hidden * 2
    least = max(num_bytes / copied, operations / multiplied)
    print(f"experts, {num_tokens} tokens: {seconds * 1e6:.0f} us ({least / seconds:4.0%})")


def show_small(num_tokens: int, copied: float) -> None:
    hidden, heads, kv_heads, dim, size = 4096, 32, 8, 128, 14336

    def rows(*shape: int) -> Tensor:
        return torch.randn(num_tokens, *shape, dtype=BF16, device=GPU)

    x, y, weight = rows(hidden), rows(hidden), torch.ones(hidden, dtype=BF16, device=GPU)
    gate_up, qkv = rows(2 * size), rows(heads + 2 * kv_heads, dim)
    blocks = (-(-num_tokens // PAGE), PAGE, kv_heads, dim)
    cache = LayerKVCache(*(torch.zeros(blocks, dtype=BF16, device=GPU) for _ in range(2)))
    rotation = Rotation(rows(1, dim), rows(1, dim))
    slots = torch.arange(num_tokens, device=GPU)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "sum and norm": (lambda: sum_and_normed(x, y, 1.0, weight, None, 1e-5), 4 * x.nbytes),
        "gated activation": (lambda: gated(gate_up, KINDS["silu"]), gate_up.nbytes * 3 // 2),
        "rotation and cache": (
            lambda: rotate_and_cache(qkv, heads, None, None, rotation, cache, slots),
            2 * qkv.nbytes,
        ),
    }
    for name, (run, num_bytes) in runs.items():
        seconds = seconds_of(run, 4)
        share = num_bytes / copied / seconds
        print(f"{name}, {num_tokens} tokens: {seconds * 1e6:.1f} us ({share:4.0%})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("decode", "prompt", "experts", "small")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    copied, multiplied = limits()
    print(f"limits: {copied / 1e9:.0f} GB/s, {multiplied / 1e12:.0f} TFLOP/s")
    for name, shape in SHAPES.items():
        for count, length in DECODES if "decode" in args.only else ():
            step = [(1, length)] * count
            show_attention(f"{name}, {count} x {length}", step, shape, copied, args.sweep)
        for count, length in PROMPTS if "prompt" in args.only else ():
            step = [(length, length)] * count
            show_attention(f"{name}, {count} x {length}", step, shape, multiplied, args.sweep)
    for num_tokens in (1, 8, 64, 256, 1024, 8192) if "experts" in args.only else ():
        show_experts(num_tokens, copied, multiplied)
    for num_tokens in (1, 64, 8192) if "small" in args.only else ():
        show_small(num_tokens, copied)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
