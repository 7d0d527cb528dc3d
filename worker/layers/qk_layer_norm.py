"""LayerNorm of queries and keys before the rotation, in the forms that families have.

One weight row for all heads (Phi), one for each head (Cohere; StableLM, where each is a tensor
apart in the checkpoint and none has a bias), or one normalization across the whole width (MPT), for
which the ranks add up their moments.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.linear import QKVParallelLinear, TensorOptions
from worker.layers.norm import HeadNorm
from worker.layers.shard import Shard
from worker.parallel.group import TPGroup

QKLayerNormKind = Literal["head", "each_head", "apart", "width"]


class QKLayerNorm(nn.Module):
    """x: [T, num_heads + num_kv_heads, head_dim], query heads first; returns the same shape."""

    def __init__(
        self,
        kind: QKLayerNormKind,
        num_heads: int,
        num_kv_heads: int,
        qkv: QKVParallelLinear,
        eps: float,
        bias: bool,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps
        self._tp = tp
        self._num_all = {"q": num_heads, "k": num_kv_heads}
        self._num_own = {"q": qkv.num_heads, "k": qkv.num_kv_heads}
        self._head_dim = qkv.num_out // (qkv.num_heads + 2 * qkv.num_kv_heads)
        # Ranks that hold the same KV heads: each adds its share of their moments.
        self._num_copies = max(1, tp.size // num_kv_heads)
        has_bias = bias and kind != "apart"
        for part, count in self._num_own.items():
            shape = (self._head_dim,) if kind == "head" else (count, self._head_dim)
            if kind in ("width", "apart"):
                shape = (count * self._head_dim,)
            setattr(self, f"{part}_weight", options.zeros(*shape))
            setattr(self, f"{part}_bias", options.zeros(*shape) if has_bias else None)

    def forward(self, x: Tensor) -> Tensor:
        normed = self._normed_by_width(x) if self.kind == "width" else self._normed_by_head(x)
        q, k = normed.split(list(self._num_own.values()), dim=1)
        parts = (self._scaled(q, "q"), self._scaled(k, "k"))
        return torch.cat(parts, dim=1).to(x.dtype)

    def head_norm(self) -> HeadNorm | None:
        """None: the norm is not of single heads."""
        if self.kind == "width":
            return None
        q_weight, k_weight, q_bias, k_bias = (
            getattr(self, f"{part}_{name}") for name in ("weight", "bias") for part in "qk"
        )
        has_weight_per_head = self.kind != "head"
        return HeadNorm(
            q_weight, k_weight, q_bias, k_bias, self.eps, 0.0, False, has_weight_per_head
        )

    def _scaled(self, x: Tensor, part: str) -> Tensor:
        weight, bias = getattr(self, f"{part}_weight"), getattr(self, f"{part}_bias")
        x = x * weight.view(-1, self._head_dim)
        return x if bias is None else x + bias.view(-1, self._head_dim)

    def _normed_by_head(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (self._head_dim,), eps=self.eps)

    def _normed_by_width(self, x: Tensor) -> Tensor:
        q, k = x.float().split(list(self._num_own.values()), dim=1)
        means = self._summed_over_ranks(q, k)
        q, k = q - means[0], k - means[1]
        variances = self._summed_over_ranks(q.square(), k.square()) + self.eps
        return torch.cat((q * variances[0].rsqrt(), k * variances[1].rsqrt()), dim=1)

    def _summed_over_ranks(self, q: Tensor, k: Tensor) -> Tensor:
        """The mean over the whole width of each: [2, T, 1, 1]."""
        q_sum = q.sum(dim=(1, 2)) / (self._num_all["q"] * self._head_dim)
        k_sum = k.sum(dim=(1, 2)) / (self._num_all["k"] * self._head_dim * self._num_copies)
        # A copy: an all-reduce may hand out a buffer that the next one writes to.
        return self._tp.all_reduce(torch.stack((q_sum, k_sum))).clone()[..., None, None]

    def shard(self, parameter: str, part: str) -> Shard:
        which = parameter[0]
        num_all, length = self._num_all[which], self._num_own[which]
        start = self._tp.rank * num_all // self._tp.size
        if self.kind == "head":
            return Shard.whole(self._head_dim)
        if self.kind == "each_head":
            return Shard((num_all, self._head_dim), dim=0, start=start, length=length)
        size = self._head_dim
        if self.kind == "apart":
            own_head = int(part) - start
            is_own = 0 <= own_head < length
            return Shard((size,), 0, 0, size * is_own, offset=own_head * size)
        return Shard((num_all * size,), dim=0, start=start * size, length=length * size)
