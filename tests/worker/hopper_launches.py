"""Launches of our kernels at the sizes of real models, compiled for an H200 and listed as JSON.

`python -m tests.worker.hopper_launches llama mixture` in a process that does not interpret kernels;
`test_hopper_kernels.py` runs it and judges what comes out.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from tests.worker.hopper_compiler import compiled_launches
from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.attention.triton_paged import TritonPlan
from worker.layers.fused_activation import CLAMPED_SWIGLU, KINDS, gated
from worker.layers.fused_experts import FusedExperts
from worker.layers.fused_latent import rotate_and_cache_latent
from worker.layers.fused_norm import sum_and_normed
from worker.layers.fused_qkv import rotate_and_cache
from worker.layers.fused_router import route
from worker.layers.moe_spec import MoESpec
from worker.layers.norm import HeadNorm
from worker.layers.rotary import Rotation

BF16 = torch.bfloat16
CPU = torch.device("cpu")
PAGE = 16
# A decode in pieces, one of few keys, and a prompt.
MIXTURE = [(1, 3000), (1, 5), (700, 700)]


def zeros(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def cache(kv_heads: int, dim: int, is_shared: bool = False) -> LayerKVCache:
    k = zeros(8, PAGE, kv_heads, dim)
    return LayerKVCache(k, k if is_shared else zeros(8, PAGE, kv_heads, dim))


def attend(
    heads: int,
    kv_heads: int,
    dim: int,
    kind: AttentionKind | None = None,
    has_sinks: bool = False,
    is_shared: bool = False,
) -> None:
    lens = np.array(MIXTURE, dtype=np.int32)
    tables = np.zeros((len(lens), int(-(-lens[:, 1].max() // PAGE))), dtype=np.int32)
    layout = BatchLayout(lens[:, 0], lens[:, 1], tables, PAGE, BF16, CPU)
    q = zeros(int(lens[:, 0].sum()), heads, dim)
    sinks = zeros(heads) if has_sinks else None
    TritonPlan(layout, kind or AttentionKind()).run(q, q, q, cache(kv_heads, dim, is_shared), sinks)


def project(
    heads: int, kv_heads: int, dim: int, rotary: int, has_norm: bool = False, is_pairs: bool = False
) -> None:
    rotation = Rotation(zeros(3, 1, rotary), zeros(3, 1, rotary), is_pairs) if rotary else None
    norm = HeadNorm(zeros(dim), zeros(dim), None, None, 1e-6, 0.0, True, False)
    slots = torch.zeros(3, dtype=torch.int64)
    qkv = zeros(3, heads + 2 * kv_heads, dim)
    clip = None if rotary else 8.0
    rotate_and_cache(
        qkv, heads, norm if has_norm else None, clip, rotation, cache(kv_heads, dim), slots
    )


def mix(num_tokens: int, num_experts: int, top_k: int, hidden: int, size: int) -> None:
    ids = torch.zeros(num_tokens, top_k, dtype=torch.int64)
    weights = zeros(num_tokens, top_k, dtype=torch.float32)
    gate_up = torch.empty(num_experts, 2 * size, hidden, dtype=BF16)
    down = torch.empty(num_experts, hidden, size, dtype=BF16)
    FusedExperts(KINDS["silu"])(
        zeros(num_tokens, hidden), weights, ids, 0, gate_up, down, None, None
    )


def llama() -> None:
    attend(32, 8, 128)
    project(32, 8, 128, 128)
    sum_and_normed(zeros(3, 4096), zeros(3, 4096), 1.0, zeros(4096), None, 1e-5)
    gated(zeros(3, 2 * 14336), KINDS["silu"])


def mpt() -> None:
    attend(32, 32, 128, AttentionKind(alibi_slopes=(0.1,) * 32))
    project(32, 32, 128, 0)
    sum_and_normed(zeros(3, 4096), zeros(3, 4096), 1.0, zeros(4096), None, 1e-5, is_rms=False)


def mixture() -> None:
    project(32, 4, 128, 128, has_norm=True)
    for num_tokens in (1, 64, 600, 4000):
        mix(num_tokens, 128, 8, 2048, 768)
    spec = MoESpec(128, 8, 768, True, (True,))
    route(zeros(3, 128, dtype=torch.float32), None, spec)


def gpt_oss() -> None:
    attend(64, 8, 64, AttentionKind(128), has_sinks=True)
    gated(zeros(3, 2 * 2880), CLAMPED_SWIGLU, 1.7, 7.0, takes_turns=True)
    mix(1, 32, 4, 2880, 2880)


def gemma() -> None:
    attend(16, 8, 256, AttentionKind(4096, soft_cap=50.0))


def deepseek() -> None:
    for heads in (16, 128):
        kind = AttentionKind(scale=0.1, value_dim=512)
        attend(heads, 1, 576, kind, is_shared=True)
    query, kv = zeros(3, 128, 576), zeros(3, 576)
    rotation = Rotation(zeros(3, 1, 64), zeros(3, 1, 64), is_interleaved=True)
    slots = torch.zeros(3, dtype=torch.int64)
    rotate_and_cache_latent(
        zeros(3, 128, 192)[..., 128:], kv, query[..., 512:], zeros(512), 1e-6, rotation,
        cache(1, 576, is_shared=True), slots,
    )  # fmt: skip
    spec = MoESpec(
        256, 8, 2048, True, (True,), is_sigmoid=True, has_choice_bias=True, num_groups=8,
        top_groups=4, best_of_group=2,
    )  # fmt: skip
    route(zeros(3, 256, dtype=torch.float32), zeros(256, dtype=torch.float32), spec)


def odd_heads() -> None:
    attend(32, 32, 80)
    attend(71, 1, 64)
    attend(24, 8, 96)
    project(32, 32, 80, 32)
    project(16, 16, 256, 64, is_pairs=True)


MODELS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (llama, mpt, mixture, gpt_oss, gemma, deepseek, odd_heads)
}


def main() -> None:
    for name in sys.argv[1:]:
        with compiled_launches() as found:
            MODELS[name]()
        for kernel in found:
            print(json.dumps({"model": name, **asdict(kernel)}))


if __name__ == "__main__":
    main()
