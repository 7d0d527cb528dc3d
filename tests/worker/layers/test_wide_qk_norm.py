"""The norm across all heads against its definition, also on ranks that share KV heads."""

import pytest
import torch
from torch import Tensor

from tests.worker.simulated_group import run_ranks
from worker.layers.linear import TensorOptions
from worker.layers.shard import split_heads
from worker.layers.wide_qk_norm import WideQKNorm
from worker.parallel.group import SingleGroup, TPGroup

OPTIONS = TensorOptions(torch.float32, torch.device("cpu"))
HEADS, HEAD_DIM, EPS = 4, 6, 1e-2


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_definition(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.flatten(1)
    return (wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight).view(x.shape)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_norm_equals_its_definition(kv_heads: int, size: int) -> None:
    q, k = randn(5, HEADS, HEAD_DIM), 3 * randn(5, kv_heads, HEAD_DIM)
    weights = {"q_weight": randn(HEADS * HEAD_DIM), "k_weight": randn(kv_heads * HEAD_DIM)}
    own_heads, own_kv_heads = split_heads(HEADS, kv_heads, size)

    def run(tp: TPGroup) -> Tensor:
        norm = WideQKNorm(HEADS, kv_heads, HEAD_DIM, EPS, tp, OPTIONS)
        for name, weight in weights.items():
            shard = norm.shard(name, "")
            assert shard.full_shape == tuple(weight.shape)
            norm.get_parameter(name).copy_(weight.narrow(0, shard.start, shard.length))
        kv_start = tp.rank * kv_heads // tp.size
        own_q = q[:, tp.rank * own_heads :][:, :own_heads]
        return norm(torch.cat((own_q, k[:, kv_start : kv_start + own_kv_heads]), dim=1))

    found = [run(SingleGroup())] if size == 1 else run_ranks(size, run)
    wanted_q = by_definition(q, weights["q_weight"])
    wanted_k = by_definition(k, weights["k_weight"])
    for rank, part in enumerate(found):
        kv_start = rank * kv_heads // size
        torch.testing.assert_close(
            part[:, :own_heads], wanted_q[:, rank * own_heads :][:, :own_heads]
        )
        torch.testing.assert_close(
            part[:, own_heads:], wanted_k[:, kv_start : kv_start + own_kv_heads]
        )
