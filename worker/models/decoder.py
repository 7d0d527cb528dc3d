"""The one decoder: any family's model, assembled from `layers/` by its ModelSpec.

It knows no family, file or batch; parameters start as zeros and the loader fills them. The runner
calls it under inference mode.
"""

import torch
from torch import Tensor, nn

from worker.attention.base import AttentionKind, ForwardContext
from worker.layers.attention import Attention, AttentionSinks
from worker.layers.embedding import ParallelLMHead, PositionEmbedding, VocabParallelEmbedding
from worker.layers.fused import fused_kernels
from worker.layers.linear import (
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    TensorOptions,
)
from worker.layers.mla import LatentAttention
from worker.layers.mla_spec import MLASpec
from worker.layers.mlp import GatedMLP, PlainMLP
from worker.layers.moe import MoE
from worker.layers.norm import LayerNorm, NoNorm, QKNorm, RMSNorm
from worker.layers.qk_layer_norm import QKLayerNorm
from worker.layers.rotary import RotaryEmbedding, Rotation
from worker.layers.shard import split_heads
from worker.layers.wide_qk_norm import WideQKNorm
from worker.models.spec import ModelSpec
from worker.parallel.group import TPGroup

AnyNorm = RMSNorm | LayerNorm | NoNorm


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x: [T, hidden], the same on every rank.

    Norms stand where the spec places them; where there is none, the identity stands in. A layer
    returns x and what is still to be added to it, so that the sum and the next layer's norm can be
    one kernel; the sum is new memory always, for an all-reduce may hand out a buffer that the next
    one writes to.
    """

    def __init__(self, spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self._residual_multiplier = spec.residual_multiplier
        has_before, has_after = spec.norm_place != "after", spec.norm_place != "before"
        self.attention_norm = _norm(spec, options) if has_before else NoNorm()
        self.attention = _attention(spec, layer, tp, options)
        self.attention_out_norm = _norm(spec, options) if has_after else nn.Identity()
        self.mlp_norm = _norm(spec, options) if has_before else NoNorm()
        self.mlp_out_norm = _norm(spec, options) if has_after else nn.Identity()
        self.mlp = _mlp(spec, layer, tp, options)

    def forward(
        self, x: Tensor, added: Tensor | None, rotation: Rotation | None, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        x, normed = _summed(self.attention_norm, x, added, self._residual_multiplier)
        attended = self.attention_out_norm(self.attention(normed, rotation, ctx))
        x, normed = self.mlp_norm.added(x, attended, self._residual_multiplier)
        return x, self.mlp_out_norm(self.mlp(normed))


class ParallelLayer(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both or one each."""

    def __init__(self, spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self.attention_norm = _norm(spec, options)
        self.mlp_norm = _norm(spec, options) if spec.parallel_norms == 2 else None
        self.attention = _attention(spec, layer, tp, options)
        self.mlp = _mlp(spec, layer, tp, options)

    def forward(
        self, x: Tensor, added: Tensor | None, rotation: Rotation | None, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        x, normed = _summed(self.attention_norm, x, added)
        mlp_input = normed if self.mlp_norm is None else self.mlp_norm(x)
        # The sum is taken first: an all-reduce may hand out a buffer that the next one writes to.
        x = x + self.attention(normed, rotation, ctx)
        return x, self.mlp(mlp_input)


class SumNormLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): the order of the first transformers."""

    def __init__(self, spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self.attention = _attention(spec, layer, tp, options)
        self.attention_norm = _norm(spec, options)
        self.mlp = _mlp(spec, layer, tp, options)
        self.mlp_norm = _norm(spec, options)

    def forward(
        self, x: Tensor, added: Tensor | None, rotation: Rotation | None, ctx: ForwardContext
    ) -> tuple[Tensor, None]:
        assert added is None, "a layer of another order before this one"
        x = self.attention_norm.added(x, self.attention(x, rotation, ctx))[1]
        return self.mlp_norm.added(x, self.mlp(x))[1], None


class Decoder(nn.Module):
    """A whole model's share of one rank. All ranks call `forward` and `logits` alike."""

    def __init__(self, spec: ModelSpec, max_len: int, tp: TPGroup, options: TensorOptions) -> None:
        super().__init__()
        self.spec = spec
        ropes = spec.layer_ropes or (spec.rope,) * spec.num_layers
        kinds = [rope for rope in dict.fromkeys(ropes) if rope is not None]
        self._rotaries = [
            RotaryEmbedding(rope, max_len, options.dtype, options.device) for rope in kinds
        ]
        # The place of a layer's rotation among a step's, whose last stands for none.
        self._rotation_of_layer = [-1 if rope is None else kinds.index(rope) for rope in ropes]
        # As the parameters are typed, so is what they are multiplied by.
        self.embedding_multiplier = float(torch.tensor(spec.embedding_multiplier).to(options.dtype))
        embedding_size = spec.embedding_size or spec.hidden_size
        self.embedding = VocabParallelEmbedding(spec.vocab_size, embedding_size, tp, options)
        self.project_in, self.project_out = None, None
        if embedding_size != spec.hidden_size:
            self.project_in = ReplicatedLinear(embedding_size, spec.hidden_size, options)
            self.project_out = ReplicatedLinear(spec.hidden_size, embedding_size, options)
        self.positions = None
        if spec.num_learned_positions:
            self.positions = PositionEmbedding(
                spec.num_learned_positions, spec.hidden_size, spec.position_offset, options
            )
        self.embedding_norm = _norm(spec, options) if spec.embedding_norm else None
        self.layers = nn.ModuleList(
            _layer(spec, layer, tp, options) for layer in range(spec.num_layers)
        )
        is_plain = isinstance(self.layers[-1], DecoderLayer)
        self._last_multiplier = spec.residual_multiplier if is_plain else 1.0
        self.norm = _norm(spec, options) if spec.final_norm else nn.Identity()
        tied_to = self.embedding if spec.tied_head else None
        self.lm_head = ParallelLMHead(
            spec.vocab_size, embedding_size, tp, options, tied_to, spec.head_bias
        )

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """token_ids: [T]; returns the last layer's output, [T, hidden], before the final norm."""
        x = self.embed(token_ids, ctx.positions)
        added = None
        for layer, rotation in zip(self.layers, self.rotations(ctx.positions), strict=True):
            x, added = layer(x, added, rotation, ctx)
        return x if added is None else torch.add(x, added, alpha=self._last_multiplier)

    def rotations(self, positions: Tensor) -> list[Rotation | None]:
        """positions: [T]; one for each layer, None where it rotates nothing."""
        kinds = [*(rotary.rotation(positions) for rotary in self._rotaries), None]
        return [kinds[i] for i in self._rotation_of_layer]

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.embedding(token_ids)
        if self.embedding_multiplier != 1.0:
            x = x * self.embedding_multiplier
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = x + self.positions(positions)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """x: [N, hidden], rows of `forward`'s result; returns [N, vocab_size]."""
        x = self.norm(x)
        logits = self.lm_head(x if self.project_out is None else self.project_out(x))
        if self.spec.logit_multiplier != 1.0:
            logits = logits * self.spec.logit_multiplier
        if self.spec.logit_soft_cap is not None:
            logits = self.spec.logit_soft_cap * torch.tanh(logits / self.spec.logit_soft_cap)
        return logits


def _layer(spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> nn.Module:
    if spec.parallel_norms:
        return ParallelLayer(spec, layer, tp, options)
    if spec.norm_place == "sum":
        return SumNormLayer(spec, layer, tp, options)
    return DecoderLayer(spec, layer, tp, options)


def _summed(
    norm: AnyNorm, x: Tensor, added: Tensor | None, multiplier: float = 1.0
) -> tuple[Tensor, Tensor]:
    """x with what the layer before adds, and its norm."""
    return (x, norm(x)) if added is None else norm.added(x, added, multiplier)


def _mlp(spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> nn.Module:
    if spec.moe is not None and spec.moe.is_sparse[layer]:
        return MoE(spec.moe, spec.hidden_size, spec.activation, tp, options)
    kind = GatedMLP if spec.is_gated else PlainMLP
    return kind(
        spec.hidden_size, spec.intermediate_size, spec.activation, spec.mlp_bias, tp, options
    )


def _norm(spec: ModelSpec, options: TensorOptions) -> RMSNorm | LayerNorm:
    if spec.norm_kind == "layer":
        return LayerNorm(spec.hidden_size, spec.norm_eps, spec.norm_bias, options, spec.norm_weight)
    return RMSNorm(spec.hidden_size, spec.norm_eps, options, spec.norm_offset)


def _latent_attention(
    spec: ModelSpec, mla: MLASpec, layer: int, tp: TPGroup, options: TensorOptions
) -> nn.Module:
    window, scale = spec.windows[layer], spec.attention_scale
    kind = AttentionKind(window, scale=scale, value_dim=mla.kv_rank)
    return LatentAttention(layer, mla, spec.hidden_size, spec.num_heads, kind, tp, options)


def _attention(spec: ModelSpec, layer: int, tp: TPGroup, options: TensorOptions) -> nn.Module:
    if spec.mla is not None:
        return _latent_attention(spec, spec.mla, layer, tp, options)
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
    first_head = tp.rank * qkv.num_heads
    kind = AttentionKind(
        spec.windows[layer],
        scale=spec.attention_scale,
        soft_cap=spec.attention_soft_cap,
        alibi_slopes=spec.alibi_slopes[first_head : first_head + qkv.num_heads],
    )
    sinks = AttentionSinks(spec.num_heads, tp, options) if spec.attention_sinks else None
    qk_norm = _qk_norm(spec, qkv, tp, options)
    kernels = fused_kernels(options)
    return Attention(layer, qkv, output, qk_norm, kind, sinks, spec.clip_qkv, kernels)


def _qk_norm(
    spec: ModelSpec, qkv: QKVParallelLinear, tp: TPGroup, options: TensorOptions
) -> nn.Module | None:
    if spec.qk_layer_norm is not None:
        return QKLayerNorm(
            spec.qk_layer_norm,
            spec.num_heads,
            spec.num_kv_heads,
            qkv,
            spec.norm_eps,
            spec.norm_bias,
            tp,
            options,
        )
    if not spec.qk_norm:
        return None
    if spec.wide_qk_norm:
        return WideQKNorm(
            spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.norm_eps, tp, options
        )
    num_heads, num_kv_heads = split_heads(spec.num_heads, spec.num_kv_heads, tp.size)
    return QKNorm(num_heads, num_kv_heads, spec.head_dim, spec.norm_eps, options, spec.norm_offset)
