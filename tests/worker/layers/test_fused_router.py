"""Routing in one kernel chooses and weighs as torch's operators do, in every form of it."""

import dataclasses
from typing import Any

import pytest
import torch

from tests.worker.interpreted import DEVICE, runs_kernels
from worker.layers.fused_router import route
from worker.layers.linear import TensorOptions
from worker.layers.moe import Router
from worker.layers.moe_spec import MoESpec

pytestmark = runs_kernels

PLAIN = TensorOptions(torch.float32, DEVICE)
FUSED = dataclasses.replace(PLAIN, fused=True)
HIDDEN = 20
SPEC = MoESpec(num_experts=12, top_k=3, intermediate_size=8, renormalize=True, is_sparse=(True,))
FORMS: dict[str, dict[str, Any]] = {
    "renormalized softmax": {},
    "softmax of all": {"renormalize": False, "weight_scale": 2.5},
    "bias": {"has_bias": True},
    "sigmoids with a bias of choice": {"is_sigmoid": True, "has_choice_bias": True},
    "groups": {"num_groups": 4, "top_groups": 2, "renormalize": False},
    "groups by their best two": {
        "is_sigmoid": True,
        "has_choice_bias": True,
        "num_groups": 3,
        "top_groups": 2,
        "best_of_group": 2,
        "top_k": 5,
    },
    "one expert": {"top_k": 1},
    "all experts": {"top_k": 12},
    "many experts": {"num_experts": 130, "top_k": 8},
}


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_fused_equals_torch(form: str) -> None:
    spec = dataclasses.replace(SPEC, **FORMS[form])
    plain, fused = Router(spec, HIDDEN, PLAIN), Router(spec, HIDDEN, FUSED)
    generator = torch.Generator().manual_seed(4)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        one.copy_(0.5 * torch.randn(one.shape, generator=generator))
        other.copy_(one)
    x = torch.randn(9, HIDDEN, generator=generator).to(DEVICE)
    weights, ids = fused(x)
    expected_weights, expected_ids = plain(x)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)


def test_of_equal_experts_the_first_are_taken() -> None:
    weights, ids = route(torch.zeros(2, 12, device=DEVICE), None, SPEC)
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert torch.allclose(weights, torch.full_like(weights, 1 / 3))


def test_ids_are_experts_whatever_the_logits() -> None:
    logits = torch.full((1, 12), torch.nan, device=DEVICE)
    _, ids = route(logits, None, SPEC)
    assert all(0 <= i < 12 for i in ids[0].tolist())


def test_no_tokens_are_no_error() -> None:
    weights, ids = route(torch.zeros(0, 12, device=DEVICE), None, SPEC)
    assert weights.shape == ids.shape == (0, 3)
