"""Every parallel layer on simulated ranks equals itself on one rank, paddings and shared heads
included.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.worker.simulated_group import run_ranks
from worker.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from worker.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    TensorOptions,
)
from worker.layers.mlp import GatedMLP
from worker.layers.shard import split_heads
from worker.parallel.group import SingleGroup, TPGroup

OPTIONS = TensorOptions(torch.float32, torch.device("cpu"))
Weights = dict[tuple[str, str], Tensor]


def load(layer: nn.Module, weights: Weights) -> None:
    """What the loader does: the slices that the layer asks for, out of whole tensors."""
    for (path, part), tensor in weights.items():
        module, _, parameter = path.rpartition(".")
        shard = layer.get_submodule(module).shard(parameter, part)  # type: ignore[operator]
        assert shard.full_shape == tuple(tensor.shape)
        data = tensor.narrow(
            shard.dim, min(shard.start, shard.full_shape[shard.dim]), shard.num_available
        )
        target = layer.get_parameter(path)
        target.narrow(shard.dim, shard.offset, shard.num_available).copy_(data)


def outputs(
    size: int, make: Callable[[TPGroup], nn.Module], weights: Weights, x: Tensor
) -> list[Tensor]:
    def run(tp: TPGroup) -> Tensor:
        with torch.inference_mode():
            layer = make(tp)
            load(layer, weights)
            return layer(x)

    return [run(SingleGroup())] if size == 1 else run_ranks(size, run)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("num_features", [12, 13])
def test_mlp_equals_one_rank(size: int, num_features: int) -> None:
    weights = {
        ("gate_up.weight", "gate"): randn(num_features, 10),
        ("gate_up.weight", "up"): randn(num_features, 10) + 1,
        ("gate_up.bias", "gate"): randn(num_features),
        ("gate_up.bias", "up"): randn(num_features) + 1,
        ("down.weight", ""): randn(10, num_features),
        ("down.bias", ""): randn(10),
    }

    def make(tp: TPGroup) -> nn.Module:
        return GatedMLP(10, num_features, "silu", True, tp, OPTIONS)

    x = randn(5, 10)
    gate = nn.functional.silu(
        x @ weights[("gate_up.weight", "gate")].T + weights[("gate_up.bias", "gate")]
    )
    up = x @ weights[("gate_up.weight", "up")].T + weights[("gate_up.bias", "up")]
    expected = (gate * up) @ weights[("down.weight", "")].T + weights[("down.bias", "")]
    for ranks in (1, size):
        for found in outputs(ranks, make, weights, x):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_qkv_ranks_hold_their_heads(size: int, num_kv_heads: int) -> None:
    num_heads, head_dim = 4, 3
    weights = {
        ("weight", part): randn(heads * head_dim, 8) + i
        for i, (part, heads) in enumerate(
            zip("qkv", (num_heads, num_kv_heads, num_kv_heads), strict=True)
        )
    }
    x = randn(2, 8)

    def make(tp: TPGroup) -> nn.Module:
        return QKVParallelLinear(8, num_heads, num_kv_heads, head_dim, False, tp, OPTIONS)

    whole = {part: (x @ w.T).view(2, -1, head_dim) for (_, part), w in weights.items()}
    local_heads, local_kv_heads = split_heads(num_heads, num_kv_heads, size)
    group = num_heads // num_kv_heads
    for rank, found in enumerate(outputs(size, make, weights, x)):
        heads = found.view(2, -1, head_dim)
        q, k, v = heads.split((local_heads, local_kv_heads, local_kv_heads), dim=1)
        for i in range(local_heads):
            head = rank * local_heads + i
            local_kv_head = i // (local_heads // local_kv_heads)
            torch.testing.assert_close(q[:, i], whole["q"][:, head])
            torch.testing.assert_close(k[:, local_kv_head], whole["k"][:, head // group])
            torch.testing.assert_close(v[:, local_kv_head], whole["v"][:, head // group])


@pytest.mark.parametrize("size", [2, 3])
def test_row_parallel_adds_its_bias_once(size: int) -> None:
    weights = {("weight", ""): randn(4, 6), ("bias", ""): torch.full((4,), 100.0)}
    x = randn(3, 6)

    def make(tp: TPGroup) -> nn.Module:
        layer = RowParallelLinear(6, 4, True, tp, OPTIONS)
        share = 6 // tp.size
        layer.register_forward_pre_hook(
            lambda _, inputs: inputs[0][:, tp.rank * share : (tp.rank + 1) * share]
        )
        return layer

    expected = x @ weights[("weight", "")].T + 100.0
    for found in outputs(size, make, weights, x):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_embedding_and_head_equal_one_rank_with_padded_vocabulary(size: int) -> None:
    table = randn(11, 6)  # 11 rows split over 2, 3 and 5 ranks: all need padding
    token_ids = torch.arange(11)

    def embedding(tp: TPGroup) -> nn.Module:
        return VocabParallelEmbedding(11, 6, tp, OPTIONS)

    def head(tp: TPGroup) -> nn.Module:
        return ParallelLMHead(11, 6, tp, OPTIONS)

    for found in outputs(size, embedding, {("weight", ""): table}, token_ids):
        assert torch.equal(found, table)
    x = randn(3, 6)
    for found in outputs(size, head, {("weight", ""): table}, x):
        torch.testing.assert_close(found, x @ table.T)


def test_small_fp32_weights_are_column_major_and_large_ones_are_not() -> None:
    small = ColumnParallelLinear(8, {"": 16}, False, SingleGroup(), OPTIONS)
    large = ColumnParallelLinear(2048, {"": 2048}, False, SingleGroup(), OPTIONS)
    assert small.weight.shape == (16, 8) and small.weight.t().is_contiguous()
    assert large.weight.is_contiguous()


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 2), (12, 3, 2), (12, 4, 3)])
def test_heads_that_do_not_divide_are_refused(heads: int, kv_heads: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"over {size} ranks"):
        split_heads(heads, kv_heads, size)


def test_failing_rank_ends_the_simulated_group_at_once() -> None:
    def fail_on_one(tp: TPGroup) -> None:
        if tp.rank == 1:
            raise RuntimeError("rank 1 is out")
        tp.all_reduce(torch.zeros(1))

    with pytest.raises(RuntimeError, match="rank 1 is out"):
        run_ranks(2, fail_on_one)
