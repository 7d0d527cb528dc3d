"""Attention whose queries and cache come out of one kernel equals attention on torch operators."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.interpreted import DEVICE, runs_kernels
from tests.worker.layers.fresh_context import BLOCK_SIZE, LENS, NUM_BLOCKS, fresh_context
from worker.attention.base import AttentionKind, ForwardContext, LayerKVCache
from worker.layers.attention import Attention
from worker.layers.fused import fused_kernels
from worker.layers.linear import QKVParallelLinear, RowParallelLinear, TensorOptions
from worker.layers.norm import QKNorm
from worker.layers.qk_layer_norm import QKLayerNorm
from worker.layers.rope_spec import RopeSpec
from worker.layers.rotary import RotaryEmbedding
from worker.layers.wide_qk_norm import WideQKNorm
from worker.parallel.group import SingleGroup

pytestmark = runs_kernels

PLAIN = TensorOptions(torch.float32, DEVICE)
FUSED = dataclasses.replace(PLAIN, fused=True)
TP = SingleGroup()
HIDDEN = 24

# heads, kv heads, head_dim, rotation, norm, clip
CASES: dict[str, tuple[int, int, int, RopeSpec | None, str | None, float | None]] = {
    "plain": (4, 2, 16, None, None, None),
    "rotation": (4, 2, 16, RopeSpec(100.0, 16), None, None),
    "rotation of a part": (3, 3, 20, RopeSpec(100.0, 12), None, None),
    "rotation of pairs": (4, 1, 16, RopeSpec(100.0, 16, is_interleaved=True), None, None),
    "a part in pairs": (4, 4, 20, RopeSpec(100.0, 8, is_interleaved=True), None, None),
    "clip": (4, 2, 12, RopeSpec(100.0, 12), None, 0.4),
    "clip alone": (4, 2, 12, None, None, 0.4),
    "rms": (4, 2, 16, RopeSpec(100.0, 16), "rms", None),
    "rms with an offset, unrotated": (4, 2, 24, None, "rms offset", None),
    "rms of a part rotated": (5, 5, 20, RopeSpec(100.0, 8), "rms", 0.5),
    "layer norm": (4, 2, 16, RopeSpec(100.0, 8), "head", None),
    "layer norm of each head": (4, 2, 16, RopeSpec(100.0, 16), "each_head", None),
    "layer norms apart": (4, 2, 20, RopeSpec(100.0, 8), "apart", None),
    "layer norm of all heads": (4, 2, 16, RopeSpec(100.0, 16), "width", 0.5),
    "rms of all heads": (4, 2, 16, RopeSpec(100.0, 16), "wide rms", None),
}


def qk_norm(name: str | None, heads: int, kv_heads: int, dim: int, qkv: QKVParallelLinear) -> Any:
    if name is None:
        return None
    if name == "wide rms":
        return WideQKNorm(heads, kv_heads, dim, 1e-5, TP, PLAIN)
    if name.startswith("rms"):
        return QKNorm(heads, kv_heads, dim, 1e-5, PLAIN, 1.0 if "offset" in name else 0.0)
    return QKLayerNorm(name, heads, kv_heads, qkv, 1e-5, True, TP, PLAIN)  # type: ignore[arg-type]


def attention(case: str, options: TensorOptions) -> Attention:
    heads, kv_heads, dim, _, norm, clip = CASES[case]
    qkv = QKVParallelLinear(HIDDEN, heads, kv_heads, dim, True, TP, options)
    output = RowParallelLinear(heads * dim, HIDDEN, False, TP, options)
    layer = Attention(
        0, qkv, output, qk_norm(norm, heads, kv_heads, dim, qkv), AttentionKind(), None, clip,
        fused_kernels(options),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    for parameter in layer.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return layer


def context(case: str) -> ForwardContext:
    _, kv_heads, dim, _, _, _ = CASES[case]
    shape = (NUM_BLOCKS, BLOCK_SIZE, kv_heads, dim)
    return fresh_context(
        LayerKVCache(torch.zeros(shape, device=DEVICE), torch.zeros(shape, device=DEVICE))
    )


@torch.inference_mode()
def run(case: str, options: TensorOptions, ctx: ForwardContext) -> tuple[Tensor, LayerKVCache]:
    rope = CASES[case][3]
    x = torch.randn(sum(LENS), HIDDEN, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    rotation = None
    if rope is not None:
        rotation = RotaryEmbedding(rope, 64, torch.float32, DEVICE).rotation(ctx.positions)
    return attention(case, options)(x, rotation, ctx), ctx.kv_caches[0]


@pytest.mark.parametrize("case", CASES)
def test_fused_equals_torch(case: str) -> None:
    expected, expected_cache = run(case, PLAIN, context(case))
    found, cache = run(case, FUSED, context(case))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.k, expected_cache.k, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.v, expected_cache.v, rtol=1e-5, atol=1e-5)


def test_tokens_without_a_slot_are_not_cached() -> None:
    case = "rms"
    ctx = context(case)
    slots = ctx.slot_mappings[0].clone()
    hidden = [2, 4]
    ctx.slot_mappings = [slots.index_fill(0, torch.tensor(hidden, device=DEVICE), -1)]
    _, cache = run(case, FUSED, ctx)
    _, full = run(case, FUSED, context(case))
    for which, other in ((cache.k, full.k), (cache.v, full.v)):
        missing = other.view(-1, *other.shape[2:]).index_fill(0, slots[hidden], 0.0)
        assert torch.equal(which.view_as(missing), missing)
