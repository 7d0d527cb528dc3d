"""Rotary position encoding (RoFormer, Su et al. 2021), by halves or by pairs, with its scalings.

A cached key must mean the same to every later query, whichever request, chunk or replica computed
it, so the frequencies may depend on the position alone, never on the length of a running sequence.
Two scalings are defined by that length (dynamic, longrope); here the deployment's maximum length
chooses for all positions: the model's plain frequencies up to the trained length, the scaled ones
for a longer maximum.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.layers.rope_spec import RopeSpec


@dataclass(frozen=True, slots=True)
class Rotation:
    """The angles of one step's tokens, shared by all layers. Both: [T, 1, rotary_dim]."""

    cos: Tensor
    signed_sin: Tensor  # negated for a pair's first, so that rotating is a swap and a multiply-add
    is_interleaved: bool = False


class RotaryEmbedding:
    """Tables of cosines and sines for positions below `max_len`. Read-only after construction."""

    def __init__(
        self, spec: RopeSpec, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        inv_freq, scale = inverse_frequencies(spec, max_len)
        positions = torch.arange(max_len, dtype=torch.float32)
        angles = torch.outer(positions, inv_freq)
        cos, sin = angles.cos() * scale, angles.sin() * scale
        self._is_interleaved = spec.is_interleaved
        self._cos = self._paired(cos, cos).to(device, dtype)
        self._signed_sin = self._paired(-sin, sin).to(device, dtype)

    def _paired(self, first: Tensor, second: Tensor) -> Tensor:
        if self._is_interleaved:
            return torch.stack((first, second), dim=-1).flatten(-2)
        return torch.cat((first, second), dim=-1)

    def rotation(self, positions: Tensor) -> Rotation:
        """positions: [T] int."""
        cos = self._cos.index_select(0, positions)
        signed_sin = self._signed_sin.index_select(0, positions)
        return Rotation(cos.unsqueeze(1), signed_sin.unsqueeze(1), self._is_interleaved)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x: [T, H, head_dim]; rotates the leading rotary_dim of every head. May write into x."""
    rotary_dim = rotation.cos.shape[-1]
    if rotary_dim == x.shape[-1]:
        return _rotate_all(x, rotation)
    part = x[..., :rotary_dim]
    part.copy_(_rotate_all(part, rotation))
    return x


def _rotate_all(x: Tensor, rotation: Rotation) -> Tensor:
    if rotation.is_interleaved:
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * rotation.cos).addcmul_(swapped, rotation.signed_sin)


def inverse_frequencies(spec: RopeSpec, max_len: int) -> tuple[Tensor, float]:
    """Angle per position of each dimension pair, [rotary_dim / 2], and the scale of cos and sin."""
    match spec.kind:
        case "default":
            return _plain(spec, spec.theta), 1.0
        case "linear":
            return _plain(spec, spec.theta) / spec.factor, 1.0
        case "dynamic":
            return _plain(spec, _dynamic_theta(spec, max_len)), 1.0
        case "llama3":
            return _llama3(spec), 1.0
        case "yarn":
            return _yarn(spec), _yarn_scale(spec)
        case "longrope":
            return _longrope(spec, max_len), _longrope_scale(spec)


def _exponents(spec: RopeSpec) -> Tensor:
    return torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim


def _plain(spec: RopeSpec, theta: float) -> Tensor:
    return 1.0 / theta ** _exponents(spec)


def _dynamic_theta(spec: RopeSpec, max_len: int) -> float:
    """NTK-aware base for sequences of `max_len`; the model's own up to its trained length."""
    length = max(max_len, spec.max_position)
    stretch = spec.factor * length / spec.max_position - (spec.factor - 1)
    return float(spec.theta * stretch ** (spec.rotary_dim / (spec.rotary_dim - 2)))


def _llama3(spec: RopeSpec) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    inv_freq = _plain(spec, spec.theta)
    rotations = spec.original_max_position * inv_freq / (2 * math.pi)  # within the trained length
    width = spec.high_freq_factor - spec.low_freq_factor
    keep = ((rotations - spec.low_freq_factor) / width).clamp(0, 1)
    return (1 - keep) * inv_freq / spec.factor + keep * inv_freq


def _yarn(spec: RopeSpec) -> Tensor:
    """YaRN (Peng et al. 2023, section 3.2): "NTK-by-parts" interpolation."""
    inv_freq = _plain(spec, spec.theta)
    low, high = _yarn_dim(spec, spec.beta_fast), _yarn_dim(spec, spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = (torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)
    interpolate = ramp.clamp(0, 1)
    return inv_freq / spec.factor * interpolate + inv_freq * (1 - interpolate)


def _yarn_dim(spec: RopeSpec, num_rotations: float) -> float:
    """The dimension pair that turns `num_rotations` times within the trained length."""
    wavelength = spec.original_max_position / (num_rotations * 2 * math.pi)
    return spec.rotary_dim * math.log(wavelength) / (2 * math.log(spec.theta))


def _yarn_scale(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.mscale and spec.mscale_all_dim:
        return _mscale(spec.factor, spec.mscale) / _mscale(spec.factor, spec.mscale_all_dim)
    return _mscale(spec.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(spec: RopeSpec, max_len: int) -> Tensor:
    """LongRoPE (Ding et al. 2024): a searched stretch per frequency, another for long contexts."""
    is_long = max_len > spec.original_max_position
    stretch = torch.tensor(spec.long_factor if is_long else spec.short_factor)
    return 1.0 / (stretch * spec.theta ** _exponents(spec))


def _longrope_scale(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(spec.factor) / math.log(spec.original_max_position))
