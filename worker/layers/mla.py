"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1), in its absorbed form.

A token's keys and values are linear in one short latent, and only that is cached. Since a score
q . (U c) is (U^T q) . c, a head's query is brought into the latent space instead of all keys out of
it: attention is then multi-query over the cache itself, on any backend, and the values come out of
what it returns.
"""

import torch
from torch import Tensor, nn

from worker.attention.base import AttentionKind, ForwardContext, LayerKVCache
from worker.layers.fused import fused_kernels
from worker.layers.linear import (
    ColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    TensorOptions,
)
from worker.layers.mla_spec import MLASpec
from worker.layers.norm import RMSNorm
from worker.layers.rotary import Rotation, rotate
from worker.layers.shard import Shard
from worker.parallel.group import TPGroup

_NORM_EPS = 1e-6  # of the latents, whatever the model's own


class LatentAttention(nn.Module):
    """x: [T, hidden]; returns the same shape. This rank's heads; every rank caches the latents."""

    def __init__(
        self,
        layer: int,
        spec: MLASpec,
        hidden_size: int,
        num_heads: int,
        kind: AttentionKind,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        super().__init__()
        self._layer, self._spec, self._kind = layer, spec, kind
        self._num_heads = num_heads // tp.size
        self._kernels = fused_kernels(options)
        self.q_down, self.q_norm = None, None
        if spec.q_rank is not None:
            self.q_down = ReplicatedLinear(hidden_size, spec.q_rank, options)
            self.q_norm = RMSNorm(spec.q_rank, _NORM_EPS, options)
        q_size = num_heads * (spec.nope_dim + spec.rope_dim)
        self.q = ColumnParallelLinear(spec.q_rank or hidden_size, {"": q_size}, False, tp, options)
        self.kv_down = ReplicatedLinear(hidden_size, spec.kv_rank + spec.rope_dim, options)
        self.kv_norm = RMSNorm(spec.kv_rank, _NORM_EPS, options)
        self.k_up = HeadMatrices(num_heads, spec.nope_dim, spec.kv_rank, tp, options)
        self.v_up = HeadMatrices(num_heads, spec.v_dim, spec.kv_rank, tp, options)
        self.output = RowParallelLinear(num_heads * spec.v_dim, hidden_size, False, tp, options)

    def forward(self, x: Tensor, rotation: Rotation | None, ctx: ForwardContext) -> Tensor:
        assert rotation is not None, "latent attention without a rotation"
        spec = self._spec
        q_in = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        q = self.q(q_in).view(x.shape[0], self._num_heads, -1)
        cache = ctx.kv_caches[self._layer]
        if self._kernels is None:
            query, key = self._cached(q, self.kv_down(x), rotation, cache, ctx)
        else:
            slots = ctx.slot_mappings[cache.group]
            query = q.new_empty((*q.shape[:2], spec.kv_rank + spec.rope_dim))
            self.k_up.transposed_into(query[..., : spec.kv_rank], q[..., : spec.nope_dim])
            key = self._kernels.rotate_and_cache_latent(
                q[..., spec.nope_dim :],
                self.kv_down(x),
                query[..., spec.kv_rank :],
                self.kv_norm.weight,
                self.kv_norm.eps,
                rotation,
                cache,
                slots,
            )
        attended = ctx.attention_plan(self._kind, cache.group).run(query, key, key, cache)
        values = self.v_up(attended[..., : spec.kv_rank])
        return self.output(values.reshape(x.shape[0], -1))

    def _cached(
        self, q: Tensor, kv: Tensor, rotation: Rotation, cache: LayerKVCache, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Queries in the latent space, [T, heads, kv_rank + rope_dim], and the cached keys, [T, 1,
        kv_rank + rope_dim]. q: [T, heads, nope_dim + rope_dim]; kv: [T, kv_rank + rope_dim].
        """
        spec = self._spec
        q_plain, q_turned = q.split((spec.nope_dim, spec.rope_dim), dim=-1)
        latent, k_turned = kv.split((spec.kv_rank, spec.rope_dim), dim=-1)
        turned = rotate(torch.cat((q_turned, k_turned.unsqueeze(1)), dim=1), rotation)
        key = torch.cat((self.kv_norm(latent).unsqueeze(1), turned[:, -1:]), dim=-1)
        query = torch.cat((self.k_up.transposed(q_plain), turned[:, :-1]), dim=-1)
        ctx.write(cache, key, key)
        return query, key


class HeadMatrices(nn.Module):
    """One matrix [num_out, num_in] for each head of this rank."""

    def __init__(
        self, num_heads: int, num_out: int, num_in: int, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._full_shape = (num_heads * num_out, num_in)
        self._length = num_heads // tp.size * num_out
        self._start = tp.rank * self._length
        self._shape = (-1, num_out, num_in)
        self.weight = options.zeros(self._length, num_in)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, heads, num_in]; returns [T, heads, num_out]."""
        return torch.einsum("thi,hoi->tho", x, self.weight.view(self._shape))

    def transposed(self, x: Tensor) -> Tensor:
        """x: [T, heads, num_out]; returns [T, heads, num_in]."""
        return torch.einsum("tho,hoi->thi", x, self.weight.view(self._shape))

    def transposed_into(self, out: Tensor, x: Tensor) -> None:
        """The same, written to `out`, whose heads may stand in wider rows."""
        weight = self.weight.view(self._shape)
        torch.bmm(x.transpose(0, 1), weight, out=out.transpose(0, 1))

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard(self._full_shape, dim=0, start=self._start, length=self._length)
