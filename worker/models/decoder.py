"""The one decoder: any family's model, assembled from `layers/` by its ModelSpec.

It knows no family, file or batch; parameters start as zeros and the loader fills them. The runner
calls it under inference mode.
"""

from torch import Tensor, nn

from worker.attention.base import ForwardContext
from worker.layers.attention import Attention
from worker.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from worker.layers.linear import QKVParallelLinear, RowParallelLinear, TensorOptions
from worker.layers.mlp import GatedMLP
from worker.layers.norm import QKNorm, RMSNorm
from worker.layers.rotary import RotaryEmbedding, Rotation
from worker.models.spec import ModelSpec
from worker.parallel.group import TPGroup


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x: [T, hidden], the same on every rank."""

    def __init__(self, spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps, options)
        self.attention = _attention(spec, layer, tp, options)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps, options)
        self.mlp = GatedMLP(
            spec.hidden_size, spec.intermediate_size, spec.activation, spec.mlp_bias, tp, options
        )

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        # Not in place: an all-reduce may hand out a buffer that the next one writes to.
        x = x + self.attention(self.attention_norm(x), rotation, ctx)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """A whole model's share of one rank. All ranks call `forward` and `logits` alike."""

    def __init__(self, spec: ModelSpec, max_len: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self.spec = spec
        self._rotary = RotaryEmbedding(spec.rope, max_len, options.dtype, options.device)
        self.embedding = VocabParallelEmbedding(spec.vocab_size, spec.hidden_size, tp, options)
        self.layers = nn.ModuleList(
            DecoderLayer(spec, layer, tp, options) for layer in range(spec.num_layers)
        )
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps, options)
        tied_to = self.embedding if spec.tied_head else None
        self.lm_head = ParallelLMHead(spec.vocab_size, spec.hidden_size, tp, options, tied_to)

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """token_ids: [T]; returns the last layer's output, [T, hidden], before the final norm."""
        x = self.embedding(token_ids)
        rotation = self._rotary.rotation(ctx.positions)
        for layer in self.layers:
            x = layer(x, rotation, ctx)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """x: [N, hidden], rows of `forward`'s result; returns [N, vocab_size]."""
        return self.lm_head(self.norm(x))


def _attention(spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> Attention:
    qkv = QKVParallelLinear(
        spec.hidden_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.qkv_bias,
        tp,
        options,
    )
    num_in = spec.num_heads * spec.head_dim
    output = RowParallelLinear(num_in, spec.hidden_size, spec.output_bias, tp, options)
    qk_norm = None
    if spec.qk_norm:
        qk_norm = QKNorm(qkv.num_heads, qkv.num_kv_heads, spec.head_dim, spec.norm_eps, options)
    return Attention(layer, qkv, output, qk_norm, spec.windows[layer])
