"""A native mixture of experts equals the torch module, for all routings, in both types.

The whole path of a decoder with experts in its layers; what families need of it is held against
transformers by the parity table.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.worker.native.kernels import VARIANT_NAMES, kernels
from worker.attention.base import ForwardContext
from worker.attention.gathered import gathered_attention
from worker.kv_groups import group_layers
from worker.layers.linear import TensorOptions
from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.models.decoder import Decoder
from worker.models.spec import ModelSpec
from worker.native.decoder import NativeDecoder
from worker.parallel.group import SingleGroup
from worker.runner.input_batch import BatchLayout
from worker.runner.kv_cache import allocate_kv_caches

CPU = torch.device("cpu")
NUM_TOKENS = 37
NO_ROWS = torch.empty(0, dtype=torch.int64)

PLAIN = MoESpec(
    num_experts=6, top_k=2, intermediate_size=24, renormalize=True, is_sparse=(True, False)
)
ROUTINGS: dict[str, dict[str, Any]] = {
    "renormalized softmax": {},
    "softmax of all": {"renormalize": False, "weight_scale": 2.5},
    "biased sigmoids": {"is_sigmoid": True, "has_choice_bias": True},
    "groups": {
        "is_sigmoid": True,
        "has_choice_bias": True,
        "num_groups": 3,
        "top_groups": 2,
        "best_of_group": 2,
        "top_k": 3,
    },
    "shared": {"shared_intermediate_size": 40},
    "shared without gate": {"shared_intermediate_size": 40, "is_shared_gated": False},
    "clamped": {"swiglu": ClampedSwiGLU(1.7, 0.5), "has_bias": True},
    "one expert a token": {"top_k": 1},
    "all experts": {"top_k": 6},
}


def make_decoder(moe: MoESpec, dtype: torch.dtype) -> Decoder:
    spec = ModelSpec(
        vocab_size=50,
        hidden_size=40,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=20,
        intermediate_size=32,
        norm_eps=1e-5,
        rope=None,
        activation="silu",
        windows=(None, None),
        moe=moe,
    )
    decoder = Decoder(spec, 64, SingleGroup(), TensorOptions(dtype, CPU))
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return decoder


def make_context(decoder: Decoder, num_tokens: int) -> ForwardContext:
    dtype = decoder.embedding.weight.dtype
    positions = torch.arange(num_tokens)
    lens = torch.tensor([num_tokens], dtype=torch.int32).numpy()
    tables = torch.arange(4, dtype=torch.int32)[None].numpy()
    return ForwardContext(
        positions=positions,
        slot_mappings=[positions],
        layouts=[BatchLayout(lens, lens, tables, 16, dtype, CPU)],
        kv_caches=allocate_kv_caches(group_layers((None, None), 64), 4, 16, 1, 20, dtype, CPU),
        backend=gathered_attention,
    )


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@torch.inference_mode()
def test_layers_match_torch(variant: str, dtype: torch.dtype, routing: dict[str, Any]) -> None:
    moe = replace(PLAIN, **routing)
    token_ids = torch.arange(NUM_TOKENS) % 50
    # In fp32 also where the model is bf16: torch's own rounding would choose other experts.
    reference = make_decoder(moe, dtype).float()
    expected = reference(token_ids, make_context(reference, NUM_TOKENS))
    decoder = make_decoder(moe, dtype)
    context = make_context(decoder, NUM_TOKENS)
    native = NativeDecoder(decoder, kernels(variant), SingleGroup(), 2, 64, 16)
    hidden, _ = native.forward(token_ids, context, NO_ROWS)
    if dtype == torch.float32:
        assert (hidden - expected).abs().max() < 1e-5
        return
    # A close choice may still fall otherwise, for few tokens.
    differences = (hidden - expected).abs().amax(dim=1)
    assert (differences < 0.1 * expected.abs().max()).float().mean() > 0.9


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@torch.inference_mode()
def test_tokens_results_do_not_depend_on_others(variant: str) -> None:
    decoder = make_decoder(PLAIN, torch.float32)
    native = NativeDecoder(decoder, kernels(variant), SingleGroup(), 2, 64, 16)
    token_ids = torch.arange(NUM_TOKENS) % 50
    together, _ = native.forward(token_ids, make_context(decoder, NUM_TOKENS), NO_ROWS)
    alone, _ = native.forward(token_ids[:9], make_context(decoder, 9), NO_ROWS)
    assert torch.equal(together[:9], alone)
