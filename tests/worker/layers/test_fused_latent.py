"""Latent attention whose query and key come out of one kernel equals it on torch's operators."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.worker.interpreted import DEVICE, runs_kernels
from tests.worker.layers.fresh_context import BLOCK_SIZE, LENS, NUM_BLOCKS, fresh_context
from worker.attention.base import AttentionKind, ForwardContext, LayerKVCache
from worker.layers.linear import TensorOptions
from worker.layers.mla import LatentAttention
from worker.layers.mla_spec import MLASpec
from worker.layers.rope_spec import RopeSpec
from worker.layers.rotary import RotaryEmbedding
from worker.parallel.group import SingleGroup

pytestmark = runs_kernels

PLAIN = TensorOptions(torch.float32, DEVICE)
FUSED = dataclasses.replace(PLAIN, fused=True)
HIDDEN, HEADS = 24, 5
SPECS = {
    "short queries": MLASpec(q_rank=12, kv_rank=20, nope_dim=10, rope_dim=8, v_dim=6),
    "one step": MLASpec(q_rank=None, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8),
    "rotated more than latent": MLASpec(q_rank=None, kv_rank=6, nope_dim=4, rope_dim=12, v_dim=5),
}


def context(width: int) -> ForwardContext:
    latents = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, 1, width, device=DEVICE)
    return fresh_context(LayerKVCache(latents, latents))


@torch.inference_mode()
def run(
    spec: MLASpec, options: TensorOptions, is_interleaved: bool, ctx: ForwardContext
) -> tuple[Tensor, Tensor]:
    kind = AttentionKind(scale=0.3, value_dim=spec.kv_rank)
    layer = LatentAttention(0, spec, HIDDEN, HEADS, kind, SingleGroup(), options)
    generator = torch.Generator().manual_seed(5)
    for parameter in layer.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    rope = RopeSpec(100.0, spec.rope_dim, is_interleaved=is_interleaved)
    rotation = RotaryEmbedding(rope, 64, torch.float32, DEVICE).rotation(ctx.positions)
    x = torch.randn(sum(LENS), HIDDEN, generator=generator).to(DEVICE)
    return layer(x, rotation, ctx), ctx.kv_caches[0].k


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("name", SPECS)
def test_fused_equals_torch(name: str, is_interleaved: bool) -> None:
    spec = SPECS[name]
    width = spec.kv_rank + spec.rope_dim
    expected = run(spec, PLAIN, is_interleaved, context(width))
    found = run(spec, FUSED, is_interleaved, context(width))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_tokens_without_a_slot_are_not_cached() -> None:
    spec = SPECS["one step"]
    ctx, full = context(24), context(24)
    hidden = [2, 4]
    slots = ctx.slot_mappings[0]
    ctx.slot_mappings = [slots.index_fill(0, torch.tensor(hidden, device=DEVICE), -1)]
    _, found = run(spec, FUSED, False, ctx)
    _, everything = run(spec, FUSED, False, full)
    expected = everything.view(-1, 24).index_fill(0, slots[hidden], 0.0)
    assert torch.equal(found.view(-1, 24), expected)
