"""The attention block of a decoder layer: projections, rotation, cache write, attention, output.

It knows neither how the cache is paged nor how attention is computed: `ctx` carries both.
"""

from torch import Tensor, nn

from worker.attention.base import ForwardContext
from worker.layers.linear import QKVParallelLinear, RowParallelLinear
from worker.layers.norm import QKNorm
from worker.layers.rotary import Rotation, rotate


class Attention(nn.Module):
    """Grouped-query attention over this rank's heads. x: [T, hidden]; returns the same shape."""

    def __init__(
        self,
        layer: int,
        qkv: QKVParallelLinear,
        output: RowParallelLinear,
        qk_norm: QKNorm | None,
        window: int | None,
    ) -> None:
        super().__init__()
        self._layer = layer
        self._window = window
        self.qkv = qkv
        self.output = output
        self.qk_norm = qk_norm
        self._num_qk = qkv.num_heads + qkv.num_kv_heads
        self._num_total = qkv.num_heads + 2 * qkv.num_kv_heads
        self._num_q = qkv.num_heads
        self._head_dim = qkv.num_out // self._num_total

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        qkv = self.qkv(x).view(-1, self._num_total, self._head_dim)
        qk, v = qkv[:, : self._num_qk], qkv[:, self._num_qk :]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        qk = rotate(qk, rotation)
        q, k = qk[:, : self._num_q], qk[:, self._num_q :]
        cache = ctx.kv_caches[self._layer]
        cache.write(ctx.slot_mapping, k, v)
        attended = ctx.attention_plan(self._window).run(q, k, v, cache)
        return self.output(attended.reshape(x.shape[0], -1))
