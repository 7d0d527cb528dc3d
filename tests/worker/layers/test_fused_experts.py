"""Experts in grouped kernels equal the experts one by one, for any batch, routing and rank."""

import dataclasses
from typing import Any

import pytest
import torch

from tests.worker.interpreted import DEVICE, HAS_GPU, runs_kernels
from worker.layers import fused_layout
from worker.layers.experts import Experts
from worker.layers.fused_layout import Layout, lay_out
from worker.layers.linear import TensorOptions
from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.parallel.group import SingleGroup, TPGroup

pytestmark = runs_kernels

PLAIN = TensorOptions(torch.float32, DEVICE)
FUSED = dataclasses.replace(PLAIN, fused=True)
HIDDEN = 40
SPEC = MoESpec(num_experts=6, top_k=2, intermediate_size=24, renormalize=True, is_sparse=(True,))
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"has_bias": True},
    "clamped": {"swiglu": ClampedSwiGLU(1.7, 0.5), "has_bias": True},
    "one expert a token": {"top_k": 1},
    "all experts": {"top_k": 6},
    "wide": {"intermediate_size": 150},
}


class Rank(SingleGroup):
    """One of several; the interpreter runs one kernel at a time, so ranks come one by one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def experts(spec: MoESpec, options: TensorOptions, tp: TPGroup | None = None) -> Experts:
    layer = Experts(spec, HIDDEN, "silu", tp or SingleGroup(), options)
    generator = torch.Generator().manual_seed(2)
    for parameter in layer.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def routed(num_tokens: int, spec: MoESpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weights and expert ids; the first expert is everyone's favourite."""
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.randn(num_tokens, spec.num_experts, generator=generator)
    scores[:, 0] += 1.5
    weights, ids = scores.softmax(dim=-1).topk(spec.top_k, dim=-1)
    x = torch.randn(num_tokens, HIDDEN, generator=generator)
    return x.to(DEVICE), weights.to(DEVICE), ids.to(DEVICE)


@torch.inference_mode()
def check(spec: MoESpec, num_tokens: int, tolerance: float = 1e-5) -> None:
    step = routed(num_tokens, spec)
    found, expected = experts(spec, FUSED)(*step), experts(spec, PLAIN)(*step)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_tokens", [1, 5, 30])
def test_fused_equals_one_by_one(form: str, num_tokens: int) -> None:
    check(dataclasses.replace(SPEC, **FORMS[form]), num_tokens)


@pytest.mark.parametrize("num_tokens", [100, 250])
def test_more_rows_an_expert_take_larger_tiles(num_tokens: int) -> None:
    check(SPEC, num_tokens)


def test_no_tokens_are_no_error() -> None:
    assert experts(SPEC, FUSED)(*routed(0, SPEC)).shape == (0, HIDDEN)


@pytest.mark.parametrize("num_tokens", [1, 9])
@torch.inference_mode()
def test_ranks_with_whole_experts_add_up(num_tokens: int) -> None:
    spec = dataclasses.replace(SPEC, has_bias=True, is_expert_parallel=True)
    x, weights, ids = routed(num_tokens, spec)
    whole = experts(spec, PLAIN)

    total = torch.zeros_like(x)
    for rank in range(4):
        layer = Experts(spec, HIDDEN, "silu", Rank(rank, 4), FUSED)
        for one, other in zip(layer.parameters(), whole.parameters(), strict=True):
            one.copy_(other[layer.own.start : layer.own.stop])
        total += layer(x, weights, ids)
    torch.testing.assert_close(total, whole(x, weights, ids), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_tokens_result_does_not_depend_on_others() -> None:
    x, weights, ids = routed(20, SPEC)
    layer = experts(SPEC, FUSED)
    together = layer(x, weights, ids)
    assert torch.equal(layer(x[:3], weights[:3], ids[:3]), together[:3]) or HAS_GPU


def pairs_by_expert(layout: Layout, num_own: int) -> list[list[int]]:
    """Checks the tiles, too: none before its expert's are full, none beyond what a tile holds."""
    found: list[list[int]] = [[] for _ in range(num_own)]
    block_m = layout.rows.shape[1]
    for rows, (expert, count) in zip(layout.rows.tolist(), layout.tiles.tolist(), strict=True):
        assert 0 <= count <= block_m
        if count:
            assert len(found[expert]) % block_m == 0
            found[expert] += rows[:count]
    return found


@pytest.mark.parametrize("is_sorted", [False, True], ids=["kernel", "torch"])
@pytest.mark.parametrize(("num_pairs", "num_own"), [(1, 6), (7, 6), (77, 5), (77, 2), (200, 3)])
def test_layout_puts_each_pair_to_its_expert(
    is_sorted: bool, num_pairs: int, num_own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_sorted:
        monkeypatch.setattr(fused_layout, "_MAX_SMALL_PAIRS", 0)
    generator = torch.Generator().manual_seed(num_pairs)
    ids = torch.randint(0, 8, (num_pairs,), generator=generator)
    layout = lay_out(ids.to(DEVICE), first_own=2, num_own=num_own, block_m=16)
    expected = [(ids == 2 + i).nonzero().flatten().tolist() for i in range(num_own)]
    assert pairs_by_expert(layout, num_own) == expected


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@torch.inference_mode()
def test_experts_can_be_captured() -> None:
    layer = experts(SPEC, FUSED)
    x, weights, ids = routed(5, SPEC)
    layer(x, weights, ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x, weights, ids)
    others = routed(5, dataclasses.replace(SPEC))[0] * 2
    x.copy_(others), ids.copy_(ids.flip(0))
    graph.replay()
    torch.testing.assert_close(out, experts(SPEC, PLAIN)(x, weights, ids), rtol=1e-4, atol=1e-4)
