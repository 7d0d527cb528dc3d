"""The attention block of a decoder layer: projections, rotation, cache write, attention, output.

It knows neither how the cache is paged nor how attention is computed: `ctx` carries both.
"""

from torch import Tensor, nn

from worker.attention.base import AttentionKind, ForwardContext, LayerKVCache
from worker.layers.fused import FusedKernels
from worker.layers.linear import QKVParallelLinear, RowParallelLinear, TensorOptions
from worker.layers.norm import QKNorm
from worker.layers.qk_layer_norm import QKLayerNorm
from worker.layers.rotary import Rotation, rotate
from worker.layers.shard import Shard
from worker.parallel.group import TPGroup


class Attention(nn.Module):
    """Grouped-query attention over this rank's heads. x: [T, hidden]; returns the same shape."""

    def __init__(
        self,
        layer: int,
        qkv: QKVParallelLinear,
        output: RowParallelLinear,
        qk_norm: nn.Module | None,
        kind: AttentionKind,
        sinks: "AttentionSinks | None" = None,
        clip_qkv: float | None = None,
        kernels: FusedKernels | None = None,
    ) -> None:
        super().__init__()
        self._layer = layer
        self.clip_qkv = clip_qkv
        self.kind = kind
        self.qkv = qkv
        self.output = output
        self.qk_norm = qk_norm
        self.sinks = sinks
        self._num_qk = qkv.num_heads + qkv.num_kv_heads
        self.num_kv_heads = qkv.num_kv_heads
        self._num_total = qkv.num_heads + 2 * qkv.num_kv_heads
        self.num_heads = qkv.num_heads
        self.head_dim = qkv.num_out // self._num_total
        self._kernels = kernels
        # Of the norms, the kernel knows those that stay within a head.
        self._head_norm = None
        if isinstance(qk_norm, QKNorm | QKLayerNorm):
            self._head_norm = qk_norm.head_norm()

    def forward(self, x: Tensor, rotation: Rotation | None, ctx: ForwardContext) -> Tensor:
        qkv = self.qkv(x).view(-1, self._num_total, self.head_dim)
        cache = ctx.kv_caches[self._layer]
        if self._kernels is None:
            q, k, v = self._cached(qkv, rotation, cache, ctx)
        else:
            q, k, v = self._cached_by_kernel(self._kernels, qkv, rotation, cache, ctx)
        sinks = None if self.sinks is None else self.sinks.weight
        attended = ctx.attention_plan(self.kind, cache.group).run(q, k, v, cache, sinks)
        return self.output(attended.reshape(x.shape[0], -1))

    def _cached(
        self, qkv: Tensor, rotation: Rotation | None, cache: LayerKVCache, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention takes them, the latter two written to the cache.

        qkv: [T, heads + 2 * kv_heads, head_dim], overwritten.
        """
        if self.clip_qkv is not None:
            qkv = qkv.clamp_(-self.clip_qkv, self.clip_qkv)
        qk, v = qkv[:, : self._num_qk], qkv[:, self._num_qk :]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        ctx.write(cache, k, v)
        return q, k, v

    def _cached_by_kernel(
        self,
        kernels: FusedKernels,
        qkv: Tensor,
        rotation: Rotation | None,
        cache: LayerKVCache,
        ctx: ForwardContext,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_cached`, in one kernel but for norms across heads."""
        clip = self.clip_qkv
        if self.qk_norm is not None and self._head_norm is None:
            if clip is not None:
                qkv, clip = qkv.clamp_(-clip, clip), None
            qkv[:, : self._num_qk] = self.qk_norm(qkv[:, : self._num_qk])
        slots = ctx.slot_mappings[cache.group]
        kernels.rotate_and_cache(qkv, self.num_heads, self._head_norm, clip, rotation, cache, slots)
        return (
            qkv[:, : self.num_heads],
            qkv[:, self.num_heads : self._num_qk],
            qkv[:, self._num_qk :],
        )


class AttentionSinks(nn.Module):
    """One learned score per query head of this rank: see `AttentionPlan.run`. Holds data only."""

    def __init__(self, num_heads: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self._num_heads = num_heads
        self._length = num_heads // tp.size
        self._start = tp.rank * self._length
        self.weight = options.zeros(self._length)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard((self._num_heads,), dim=0, start=self._start, length=self._length)
