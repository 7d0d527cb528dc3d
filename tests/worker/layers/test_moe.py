"""The mixture of experts against a token-by-token definition, on one rank and split over ranks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.worker.simulated_group import SimulatedGroup, run_ranks
from worker.errors import CheckpointError
from worker.layers.experts import Experts, clamped_swiglu
from worker.layers.linear import TensorOptions
from worker.layers.moe import MoE
from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.layers.shard import ShardedLayer
from worker.parallel.group import SingleGroup, TPGroup

OPTIONS = TensorOptions(torch.float32, torch.device("cpu"))
HIDDEN, SIZE, SHARED = 10, 7, 9  # sizes that 2 and 4 ranks cannot split evenly

PLAIN = MoESpec(5, 2, SIZE, renormalize=True, is_sparse=(True,))
SPECS = {
    "renormalized": PLAIN,
    "as the softmax has it": replace(PLAIN, renormalize=False),
    "all experts": replace(PLAIN, top_k=5),
    "shared expert": replace(PLAIN, shared_intermediate_size=SHARED),
    "ungated shared expert": replace(
        PLAIN, shared_intermediate_size=SHARED, is_shared_gated=False, weight_scale=2.5
    ),
    "sigmoids in groups": replace(
        PLAIN,
        num_experts=8,
        is_sigmoid=True,
        has_choice_bias=True,
        num_groups=4,
        top_groups=2,
        best_of_group=2,
    ),
    "biases and clamps": replace(PLAIN, has_bias=True, swiglu=ClampedSwiGLU(1.7, 0.8)),
}


def whole_weights(spec: MoESpec) -> dict[tuple[str, str, int | None], Tensor]:
    """By parameter, part and expert, as a checkpoint has them."""
    generator = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights: dict[tuple[str, str, int | None], Tensor] = {
        ("router.weight", "", None): randn(spec.num_experts, HIDDEN)
    }
    if spec.has_bias:
        weights["router.bias", "", None] = randn(spec.num_experts)
    if spec.has_choice_bias:
        weights["router.choice_bias", "", None] = randn(spec.num_experts)
    for expert in range(spec.num_experts):
        weights["experts.down", "", expert] = randn(HIDDEN, SIZE)
        if spec.swiglu is None:
            for part in ("gate", "up"):
                weights["experts.gate_up", part, expert] = randn(SIZE, HIDDEN)
        else:
            weights["experts.gate_up", "", expert] = randn(2 * SIZE, HIDDEN)
        if spec.has_bias:
            weights["experts.gate_up_bias", "", expert] = randn(2 * SIZE)
            weights["experts.down_bias", "", expert] = randn(HIDDEN)
    if spec.shared_intermediate_size:
        for part in ("gate", "up"):
            weights["shared.gate_up.weight", part, None] = randn(SHARED, HIDDEN)
        weights["shared.down", "", None] = randn(HIDDEN, SHARED)
        if spec.is_shared_gated:
            weights["shared.gate", "", None] = randn(1, HIDDEN)
    return weights


def run(spec: MoESpec, x: Tensor, tp: TPGroup) -> Tensor:
    with torch.inference_mode():
        layer = MoE(spec, HIDDEN, "silu", tp, OPTIONS)
        for (name, part, expert), tensor in whole_weights(spec).items():
            path, _, parameter = name.rpartition(".")
            owner: ShardedLayer = layer.get_submodule(path)  # type: ignore[assignment]
            shard = owner.shard(parameter, part)
            assert shard.full_shape == tuple(tensor.shape)
            target: Tensor = layer.get_parameter(name)
            if expert is not None:
                place = layer.experts.place_of(expert)
                if place is None:
                    continue
                target = target[place]
            start = min(shard.start, tensor.shape[shard.dim])
            data = tensor.narrow(shard.dim, start, shard.num_available)
            target.narrow(shard.dim, shard.offset, shard.num_available).copy_(data)
        return layer(x)


def allowed_experts(spec: MoESpec, scores: Tensor) -> Tensor:
    """Ids of the best experts of the best groups."""
    size = spec.num_experts // spec.num_groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(spec.num_groups)]
    groups.sort(key=lambda ids: -sum(sorted(scores[ids].tolist())[-spec.best_of_group :]))
    ids = [i for group in groups[: spec.top_groups] for i in group]
    return torch.tensor(sorted(ids, key=lambda i: -float(scores[i]))[: spec.top_k])


def by_definition(spec: MoESpec, x: Tensor) -> Tensor:
    """One token after the other, one expert after the other."""
    weights = whole_weights(spec)
    none = torch.zeros(())
    rows = []
    for token in x:
        scores = weights["router.weight", "", None] @ token
        scores = scores + weights.get(("router.bias", "", None), none)
        scores = scores.sigmoid() if spec.is_sigmoid else scores.softmax(0)
        ids = allowed_experts(spec, scores + weights.get(("router.choice_bias", "", None), none))
        chosen = scores[ids]
        if spec.renormalize:
            chosen = chosen / chosen.sum()
        y = torch.zeros(HIDDEN)
        for weight, expert in zip(chosen, ids.tolist(), strict=True):
            if spec.swiglu is None:
                gate = weights["experts.gate_up", "gate", expert] @ token
                hidden = F.silu(gate) * (weights["experts.gate_up", "up", expert] @ token)
            else:
                gate_up = weights["experts.gate_up", "", expert] @ token
                gate_up = gate_up + weights["experts.gate_up_bias", "", expert]
                gate, up = gate_up[::2].clamp(max=0.8), gate_up[1::2].clamp(-0.8, 0.8)
                hidden = (up + 1) * gate * torch.sigmoid(1.7 * gate)
            out = weights["experts.down", "", expert] @ hidden
            y += (
                spec.weight_scale
                * weight
                * (out + weights.get(("experts.down_bias", "", expert), none))
            )
        if spec.shared_intermediate_size:
            gate = F.silu(weights["shared.gate_up.weight", "gate", None] @ token)
            hidden = gate * (weights["shared.gate_up.weight", "up", None] @ token)
            openness = torch.ones(1)
            if spec.is_shared_gated:
                openness = torch.sigmoid(weights["shared.gate", "", None] @ token)
            y += openness * (weights["shared.down", "", None] @ hidden)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("is_expert_parallel", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_mixture_equals_its_definition(name: str, size: int, is_expert_parallel: bool) -> None:
    spec = replace(SPECS[name], is_expert_parallel=is_expert_parallel)
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1))
    ranks = (
        [run(spec, x, SingleGroup())] if size == 1 else run_ranks(size, lambda tp: run(spec, x, tp))
    )
    for found in ranks:
        torch.testing.assert_close(found, by_definition(spec, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_experts", [4, 5, 7])
def test_each_expert_is_whole_on_one_rank(num_experts: int) -> None:
    spec = replace(PLAIN, num_experts=num_experts, is_expert_parallel=True)
    layers = run_ranks(4, lambda tp: Experts(spec, HIDDEN, "silu", tp, OPTIONS))
    owners = [[e for e in range(num_experts) if x.place_of(e) is not None] for x in layers]
    assert sorted(expert for own in owners for expert in own) == list(range(num_experts))
    assert all(1 <= len(x.gate_up) == len(own) <= 2 for x, own in zip(layers, owners, strict=True))


@pytest.mark.parametrize("rank", [None, 0, 1])
@pytest.mark.parametrize("name", ["renormalized", "biases and clamps"])
def test_grouped_kernel_equals_one_expert_after_another(name: str, rank: int | None) -> None:
    """The path of GPUs; the operator itself also runs on CPUs."""
    tp = SingleGroup() if rank is None else SimulatedGroup(rank, 2, None)  # type: ignore[arg-type]
    spec = replace(SPECS[name], intermediate_size=8, is_expert_parallel=rank is not None)
    experts = Experts(spec, 16, "silu", tp, OPTIONS)
    generator = torch.Generator().manual_seed(5)
    for parameter in experts.parameters():
        parameter.normal_(generator=generator)
    x = torch.randn(9, 16, generator=generator)
    ids = torch.randint(0, spec.num_experts, (9, 2), generator=generator)
    weights = torch.rand(9, 2, generator=generator)
    expected = experts(x, weights, ids)
    experts._has_grouped_kernel = True
    torch.testing.assert_close(experts(x, weights, ids), expected)


def test_token_does_not_depend_on_its_batch() -> None:
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1))
    together = run(PLAIN, x, SingleGroup())
    for i in range(len(x)):
        alone = run(PLAIN, x[i : i + 1], SingleGroup())
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_clamp_holds_gate_from_above_and_up_on_both_sides() -> None:
    kind = ClampedSwiGLU(alpha=1.0, limit=2.0)
    found = clamped_swiglu(kind, torch.tensor([[50.0, 50.0, -3.0, -50.0]]))
    gates = torch.tensor([2.0, -3.0])
    expected = torch.tensor([3.0, -1.0]) * gates * torch.sigmoid(gates)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 0}, "0 of 6 experts"),
        ({"top_k": 7}, "7 of 6 experts"),
        ({"num_groups": 0}, "6 experts in 0 equal groups"),
        ({"num_groups": 4}, "6 experts in 4 equal groups"),
        ({"num_groups": 2, "top_groups": 3}, "the best 3 of 2 groups"),
        ({"num_groups": 2, "best_of_group": 4}, "best 4 of their 3 experts"),
    ],
)
def test_choices_that_there_are_too_few_experts_for_are_refused(
    changes: dict[str, int], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        replace(PLAIN, **{"num_experts": 6, **changes})
