"""Rotation: what it does to a head, and which frequencies a deployment's length selects."""

import pytest
import torch
from torch import Tensor

from worker.layers.rope_spec import RopeSpec
from worker.layers.rotary import RotaryEmbedding, inverse_frequencies, rotate

CPU = torch.device("cpu")


def rotated_by_definition(x: Tensor, position: int, rotary_dim: int, theta: float) -> Tensor:
    """Each pair (i, i + rotary_dim / 2) turned by position * theta ** (-2 i / rotary_dim)."""
    out = x.clone()
    half = rotary_dim // 2
    for i in range(half):
        angle = torch.tensor(position * theta ** (-2 * i / rotary_dim))
        a, b = x[..., i], x[..., i + half]
        out[..., i] = a * angle.cos() - b * angle.sin()
        out[..., i + half] = b * angle.cos() + a * angle.sin()
    return out


@pytest.mark.parametrize("rotary_dim", [16, 8, 4])
def test_rotation_turns_pairs_of_the_leading_dimensions(rotary_dim: int) -> None:
    spec = RopeSpec(theta=100.0, rotary_dim=rotary_dim)
    table = RotaryEmbedding(spec, 32, torch.float32, CPU)
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    positions = [0, 5, 31]
    expected = [rotated_by_definition(x[i], p, rotary_dim, 100.0) for i, p in enumerate(positions)]
    found = rotate(x.clone(), table.rotation(torch.tensor(positions)))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_dynamic_scaling_starts_beyond_the_trained_length() -> None:
    spec = RopeSpec(theta=1e4, rotary_dim=8, kind="dynamic", max_position=64, factor=4.0)
    plain, _ = inverse_frequencies(RopeSpec(theta=1e4, rotary_dim=8), 64)
    assert torch.equal(inverse_frequencies(spec, 64)[0], plain)
    assert torch.equal(inverse_frequencies(spec, 10)[0], plain)
    stretched, _ = inverse_frequencies(spec, 128)
    assert (stretched[1:] < plain[1:]).all()


def test_longrope_selects_its_factors_by_the_deployed_length() -> None:
    spec = RopeSpec(
        theta=1e4,
        rotary_dim=4,
        kind="longrope",
        original_max_position=64,
        factor=4.0,
        short_factor=(1.0, 1.0),
        long_factor=(2.0, 4.0),
    )
    short, long = (inverse_frequencies(spec, length)[0] for length in (64, 65))
    torch.testing.assert_close(short / long, torch.tensor([2.0, 4.0]))
