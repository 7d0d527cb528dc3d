"""Norms in one kernel, with and without the residual sum, equal the layers on torch's operators."""

import pytest
import torch
from torch import Tensor, nn

from tests.worker.interpreted import DEVICE, runs_kernels
from worker.layers.linear import TensorOptions
from worker.layers.norm import LayerNorm, RMSNorm

pytestmark = runs_kernels

PLAIN = TensorOptions(torch.float32, DEVICE)
FUSED = TensorOptions(torch.float32, DEVICE, fused=True)

NORMS = {
    "rms": lambda size, options: RMSNorm(size, 1e-5, options),
    "rms with an offset": lambda size, options: RMSNorm(size, 1e-6, options, offset=1.0),
    "layer": lambda size, options: LayerNorm(size, 1e-5, True, options),
    "layer without bias": lambda size, options: LayerNorm(size, 1e-5, False, options),
    "layer without weight": lambda size, options: LayerNorm(size, 1e-5, False, options, False),
}


def both(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """On torch's operators and fused, of the same parameters."""
    generator = torch.Generator().manual_seed(size)
    plain, fused = NORMS[name](size, PLAIN), NORMS[name](size, FUSED)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        one.copy_(torch.randn(size, generator=generator))
        other.copy_(one)
    return plain, fused


def rows(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, size, generator=generator) + 1).to(DEVICE)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("size", [64, 100, 1])
def test_norm_equals_torch(name: str, size: int) -> None:
    plain, fused = both(name, size)
    x = rows(3, size)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("size", "alpha"), [(64, 1.0), (100, 0.3)])
def test_norm_of_a_sum_equals_torch(name: str, size: int, alpha: float) -> None:
    plain, fused = both(name, size)
    x, y = rows(3, size), rows(3, size, seed=1)
    kept = x.clone(), y.clone()
    for found, expected in zip(fused.added(x, y, alpha), plain.added(x, y, alpha), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])  # others may still read them


def test_rows_may_be_a_part_of_wider_ones() -> None:
    plain, fused = both("rms", 40)
    x = rows(3, 60)[:, 7:47]
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)


def test_no_rows_are_no_error() -> None:
    _, fused = both("layer", 40)
    total, normed = fused.added(rows(0, 40), rows(0, 40))
    assert total.shape == normed.shape == (0, 40)


def test_the_norm_is_of_the_sum_as_it_is_stored() -> None:
    """In a short type: the next layer reads the rounded sum."""
    options = TensorOptions(torch.float16, DEVICE, fused=True)
    norm = RMSNorm(64, 1e-5, options)
    norm.weight.fill_(1.0)
    x, y = rows(4, 64).half(), (rows(4, 64, seed=1) * 1e-3).half()
    total, normed = norm.added(x, y)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, norm(total))
