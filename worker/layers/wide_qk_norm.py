"""RMSNorm over all query heads together, and over all key heads together (OLMo 2, 2025).

Heads are split over ranks, so a rank knows only its part of a token's mean square; the ranks add
their parts up.
"""

import torch
from torch import Tensor, nn

from worker.layers.linear import TensorOptions
from worker.layers.shard import Shard, split_heads
from worker.parallel.group import TPGroup


class WideQKNorm(nn.Module):
    """x: [T, num_heads + num_kv_heads, head_dim] of this rank; returns the same shape.

    A KV head that several ranks keep counts once for each of them, in the sum and in its divisor.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        """Head counts are the model's."""
        super().__init__()
        self._tp = tp
        self.eps = eps
        self._sizes = {"q_weight": num_heads * head_dim, "k_weight": num_kv_heads * head_dim}
        self._num_heads, self._num_kv_heads = split_heads(num_heads, num_kv_heads, tp.size)
        lengths = (self._num_heads * head_dim, self._num_kv_heads * head_dim)
        starts = (tp.rank * lengths[0], tp.rank * num_kv_heads // tp.size * head_dim)
        self._slices = dict(zip(self._sizes, zip(starts, lengths, strict=True), strict=True))
        self._num_summed = tuple(length * tp.size for length in lengths)
        self.q_weight, self.k_weight = (options.zeros(length) for length in lengths)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        q, k = wide[:, : self._num_heads].flatten(1), wide[:, self._num_heads :].flatten(1)
        squares = torch.stack((q.square().sum(dim=1), k.square().sum(dim=1)), dim=1)
        squares = self._tp.all_reduce(squares)
        q_scale = squares[:, :1].div(self._num_summed[0]).add_(self.eps).rsqrt_()
        k_scale = squares[:, 1:].div(self._num_summed[1]).add_(self.eps).rsqrt_()
        q = q * q_scale * self.q_weight.float()
        k = k * k_scale * self.k_weight.float()
        return torch.cat((q, k), dim=1).view(x.shape).to(x.dtype)

    def shard(self, parameter: str, part: str) -> Shard:
        start, length = self._slices[parameter]
        return Shard((self._sizes[parameter],), dim=0, start=start, length=length)
