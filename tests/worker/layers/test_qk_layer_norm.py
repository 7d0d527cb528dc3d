"""Every form of query and key LayerNorm over ranks equals its definition on the whole tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.worker.simulated_group import run_ranks
from worker.layers.linear import QKVParallelLinear, TensorOptions
from worker.layers.qk_layer_norm import QKLayerNorm, QKLayerNormKind
from worker.parallel.group import TPGroup

HEADS, KV_HEADS, SIZE, EPS = 8, 2, 6, 1e-5
OPTIONS = TensorOptions(torch.float32, torch.device("cpu"))


def full_parameters(kind: QKLayerNormKind) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = {}
    for part, count in (("q", HEADS), ("k", KV_HEADS)):
        size = {"head": (SIZE,), "each_head": (count, SIZE), "width": (count * SIZE,)}[kind]
        for name in ("weight", "bias"):
            parameters[f"{part}_{name}"] = torch.randn(size, generator=generator)
    return parameters


def expected(kind: QKLayerNormKind, x: Tensor, part: str) -> Tensor:
    """x: [T, heads, SIZE], all of them."""
    p = full_parameters(kind)
    weight, bias = p[f"{part}_weight"], p[f"{part}_bias"]
    if kind == "width":
        return F.layer_norm(x.flatten(1), weight.shape, weight, bias, EPS).view_as(x)
    return F.layer_norm(x, (SIZE,), eps=EPS) * weight + bias


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["head", "each_head", "width"])
def test_ranks_together_norm_as_one(kind: QKLayerNormKind, size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(5, HEADS, SIZE, generator=generator) + 1
    k = torch.randn(5, KV_HEADS, SIZE, generator=generator) - 1

    def run(tp: TPGroup) -> None:
        qkv = QKVParallelLinear(4, HEADS, KV_HEADS, SIZE, False, tp, OPTIONS)
        norm = QKLayerNorm(kind, HEADS, KV_HEADS, qkv, EPS, True, tp, OPTIONS)
        for name, value in full_parameters(kind).items():
            shard = norm.shard(name, "")
            part = value.narrow(shard.dim, shard.start, shard.length)
            norm.get_parameter(name).copy_(part)
        first_q, first_k = tp.rank * HEADS // size, tp.rank * KV_HEADS // size
        own_q = slice(first_q, first_q + qkv.num_heads)
        own_k = slice(first_k, first_k + qkv.num_kv_heads)
        found = norm(torch.cat((q[:, own_q], k[:, own_k]), dim=1))
        wanted = torch.cat(
            (expected(kind, q, "q")[:, own_q], expected(kind, k, "k")[:, own_k]), dim=1
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    run_ranks(size, run)
