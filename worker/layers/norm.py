"""Normalization layers: replicated on every rank, computed in fp32, typed as their input.

Each also takes the residual sum that comes before it, `added`: on GPUs both are one kernel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.fused import fused_kernels
from worker.layers.linear import TensorOptions
from worker.layers.shard import Shard


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset) over the last dimension (Zhang & Sennrich 2019).

    x: [..., size]. A checkpoint's weight that means its distance from 1 has offset 1 (Gemma); the
    sum is taken in fp32, for in a shorter type it would lose digits of the weight.
    """

    def __init__(self, size: int, eps: float, options: TensorOptions, offset: float = 0.0) -> None:
        super().__init__()
        self._shape = (size,)
        self.eps = eps
        self.offset = offset
        self.weight = options.zeros(size)
        self._kernels = fused_kernels(options)

    def forward(self, x: Tensor) -> Tensor:
        if self._kernels is not None:
            return self._kernels.normed(x, self.weight, None, self.eps, self.offset)
        if not self.offset:
            return rms_normalized(x, self.eps, self.weight)
        weight = self.weight.float() + self.offset
        return rms_normalized(x.float(), self.eps, weight).to(x.dtype)

    def added(self, x: Tensor, y: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """x + alpha * y in new memory, and its norm. x, y: [T, size]."""
        if self._kernels is not None:
            return self._kernels.sum_and_normed(
                x, y, alpha, self.weight, None, self.eps, self.offset
            )
        x = torch.add(x, y, alpha=alpha)
        return x, self(x)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard.whole(*self._shape)


class NoNorm(nn.Identity):
    """Stands where a family has no norm."""

    def added(self, x: Tensor, y: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """x + alpha * y in new memory, twice."""
        x = torch.add(x, y, alpha=alpha)
        return x, x


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias over the last dimension (Ba et al. 2016)."""

    def __init__(
        self, size: int, eps: float, bias: bool, options: TensorOptions, weight: bool = True
    ) -> None:
        super().__init__()
        self._shape = (size,)
        self.eps = eps
        self.weight = options.zeros(size) if weight else None
        self.bias = options.zeros(size) if bias else None
        self._kernels = fused_kernels(options)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._shape, self.weight, self.bias, self.eps)

    def added(self, x: Tensor, y: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """x + alpha * y in new memory, and its norm. x, y: [T, size]."""
        if self._kernels is not None:
            return self._kernels.sum_and_normed(
                x, y, alpha, self.weight, self.bias, self.eps, is_rms=False
            )
        x = torch.add(x, y, alpha=alpha)
        return x, self(x)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard.whole(*self._shape)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """The parameters of a norm over head_dim of each query and key head, as a kernel takes them."""

    q_weight: Tensor  # [head_dim], or [heads * head_dim] where each head has its own
    k_weight: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    eps: float
    offset: float  # added to the weights
    is_rms: bool
    has_weight_per_head: bool


class QKNorm(nn.Module):
    """RMSNorm over head_dim of every query and key head, before the rotation (Qwen3).

    One normalization serves both: the weight has a row for queries and one for keys, and
    `num_heads` query heads come first. x: [T, num_heads + num_kv_heads, head_dim].
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        options: TensorOptions,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self._head_dim = head_dim
        self.offset = offset
        self._num_heads, self._num_kv_heads = num_heads, num_kv_heads
        self.eps = eps
        self.q_weight = options.zeros(head_dim)
        self.k_weight = options.zeros(head_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.offset:
            return self._offset_normed(x)
        normed = rms_normalized(x, self.eps)
        normed[:, : self._num_heads].mul_(self.q_weight)
        normed[:, self._num_heads :].mul_(self.k_weight)
        return normed

    def head_norm(self) -> HeadNorm:
        weights = (self.q_weight, self.k_weight)
        return HeadNorm(*weights, None, None, self.eps, self.offset, True, False)

    def _offset_normed(self, x: Tensor) -> Tensor:
        normed = rms_normalized(x.float(), self.eps)
        normed[:, : self._num_heads].mul_(self.q_weight.float() + self.offset)
        normed[:, self._num_heads :].mul_(self.k_weight.float() + self.offset)
        return normed.to(x.dtype)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard.whole(self._head_dim)


def rms_normalized(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in new memory. x: [..., size]."""
    size = x.shape[-1]
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.rms_norm(x, (size,), weight, eps)
    # On CPUs torch composes rms_norm of operators that write whole matrices; a dot product of each
    # row with itself writes one number (measured: as fast on one row, several times on hundreds).
    scale = torch.linalg.vecdot(x, x).mul_(1 / size).add_(eps).rsqrt_()
    normed = x * scale.unsqueeze(-1)
    return normed if weight is None else normed.mul_(weight)
