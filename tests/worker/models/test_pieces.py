"""Pieces of a tensor fill a parameter's slots exactly once, however small they are cut."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worker.layers.experts import Experts
from worker.layers.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    TensorOptions,
)
from worker.layers.moe_spec import MoESpec
from worker.models.family import Target, fused
from worker.models.pieces import pieces_of
from worker.models.tensor_entry import TensorEntry
from worker.parallel.group import SingleGroup

OPTIONS = TensorOptions(torch.float32, torch.device("cpu"))
FILE = Path("model.safetensors")


class Rank(SingleGroup):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def model_of(layer: nn.Module) -> nn.Module:
    model = nn.Module()
    model.layer = layer
    return model


def fill(model: nn.Module, tensor: Tensor, target: Target, piece_bytes: int) -> int:
    """Returns the number of pieces. No element may be written twice."""
    entry = TensorEntry("x", FILE, tuple(tensor.shape))
    pieces = list(pieces_of(model, entry, target, piece_bytes))
    for piece in pieces:
        assert not piece.slot.any(), "written twice"
        data = tensor[piece.index]
        piece.slot.copy_(data.t() if piece.is_transposed else data)
        rows = piece.slot.shape[0]
        assert piece.num_bytes <= piece_bytes or rows == 1
    return len(pieces)


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("rank", range(3))
def test_matrix_split_by_rows(rank: int, is_transposed: bool, piece_bytes: int) -> None:
    layer = ColumnParallelLinear(5, {"": 10}, False, Rank(rank, 3), OPTIONS)
    whole = torch.rand(10, 5) + 1
    tensor = whole.t().contiguous() if is_transposed else whole
    target = Target("layer.weight", is_transposed=is_transposed)
    count = fill(model_of(layer), tensor, target, piece_bytes)
    own = whole[rank * 4 : rank * 4 + 4]
    assert torch.equal(layer.weight[: len(own)], own)
    assert not layer.weight[len(own) :].any()  # padding
    assert count == (len(own) if piece_bytes == 1 else 1)


@pytest.mark.parametrize("piece_bytes", [1, 60, 1 << 20])
@pytest.mark.parametrize("rank", range(2))
def test_matrix_split_by_columns(rank: int, piece_bytes: int) -> None:
    layer = RowParallelLinear(6, 8, False, Rank(rank, 2), OPTIONS)
    whole = torch.rand(8, 6) + 1
    fill(model_of(layer), whole, Target("layer.weight"), piece_bytes)
    assert torch.equal(layer.weight.data, whole[:, 3 * rank : 3 * rank + 3])


def test_fused_tensor_of_several_groups() -> None:
    layer = ColumnParallelLinear(3, {"a": 4, "b": 2}, False, SingleGroup(), OPTIONS)
    whole = torch.rand(6, 3) + 1  # groups of [a a b]
    for target in fused("layer.weight", {"a": 2, "b": 1}, num_groups=2):
        fill(model_of(layer), whole, target, 1)
    assert torch.equal(layer.weight.data, whole[[0, 1, 3, 4, 2, 5]])


@pytest.mark.parametrize("rank", range(2))
def test_stacked_experts_go_to_their_rank(rank: int) -> None:
    spec = MoESpec(5, 2, 4, renormalize=True, is_sparse=(True,), is_expert_parallel=True)
    layer = Experts(spec, 3, "silu", Rank(rank, 2), OPTIONS)
    whole = torch.rand(5, 4, 3) + 1  # [experts, in, out]
    for expert in range(5):
        target = Target("layer.down", is_transposed=True, expert=expert, is_stacked=True)
        fill(model_of(layer), whole, target, 20)
    own = whole[:2] if rank == 0 else whole[2:]
    assert torch.equal(layer.down.data, own.transpose(1, 2))
