"""RMSNorm against its definition, in the types it runs in."""

import pytest
import torch

from worker.layers.linear import TensorOptions
from worker.layers.norm import QKNorm, RMSNorm


def options(dtype: torch.dtype) -> TensorOptions:
    return TensorOptions(dtype, torch.device("cpu"))


def by_definition(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("shape", [(1, 24), (300, 24), (5, 3, 24)])
def test_rms_norm_equals_its_definition(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(24, 1e-2, options(dtype))
    norm.weight.copy_(torch.randn(24, generator=generator))
    x = torch.randn(shape, generator=generator).to(dtype)
    before = x.clone()
    found = norm(x)
    assert found.dtype == dtype
    expected = by_definition(x, norm.weight, 1e-2)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(x, before)


def test_tiny_values_are_kept_from_exploding_by_eps() -> None:
    norm = RMSNorm(8, 1e-5, options(torch.float32))
    norm.weight.fill_(1.0)
    assert torch.equal(norm(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_queries_and_keys_are_normed_with_their_own_weights() -> None:
    norm = QKNorm(3, 2, 8, 1e-6, options(torch.float32))
    norm.q_weight.fill_(2.0)
    norm.k_weight.fill_(-1.0)
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
    found = norm(x)
    ones = torch.ones(8)
    expected = by_definition(x, ones, 1e-6).float()
    torch.testing.assert_close(found[:, :3], 2 * expected[:, :3])
    torch.testing.assert_close(found[:, 3:], -expected[:, 3:])
