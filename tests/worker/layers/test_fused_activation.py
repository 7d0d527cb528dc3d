"""Gated activations in one kernel equal torch's operators, for all names and both layouts."""

import pytest
import torch
from torch import Tensor

from tests.worker.interpreted import DEVICE, runs_kernels
from worker.layers.activation import ACTIVATIONS, gated_activation
from worker.layers.experts import clamped_swiglu
from worker.layers.fused import fused_kernels
from worker.layers.linear import TensorOptions
from worker.layers.moe_spec import ClampedSwiGLU

pytestmark = runs_kernels

PLAIN = TensorOptions(torch.float32, DEVICE)
FUSED = TensorOptions(torch.float32, DEVICE, fused=True)


def gate_up(num_rows: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (4 * torch.randn(num_rows, 2 * size, generator=generator)).to(DEVICE)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("size", [64, 37, 1030])
def test_gated_activation_equals_torch(name: str, size: int) -> None:
    x = gate_up(3, size)
    found = gated_activation(name, FUSED)(x)
    torch.testing.assert_close(found, gated_activation(name, PLAIN)(x), rtol=1e-5, atol=1e-5)


def test_clamped_swiglu_equals_torch() -> None:
    x = gate_up(3, 50)
    kernels = fused_kernels(FUSED)
    assert kernels is not None
    found = kernels.gated(x, kernels.clamped_swiglu_kind, 1.7, 2.5, takes_turns=True)
    expected = clamped_swiglu(ClampedSwiGLU(1.7, 2.5), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_large_numbers_stay_finite() -> None:
    x = torch.tensor([[-1e30, 1e30, -88.0, 90.0, 2.0, 2.0, 2.0, 2.0]], device=DEVICE)
    for name in ("silu", "gelu", "gelu_new", "relu"):
        assert gated_activation(name, FUSED)(x).isfinite().all(), name
