"""A loaded decoder as the structures of the native program, its matrices packed on the way.

Says which parts of a model the kernels compute; the rest stays as torch modules. Matrices come
packed where a checkpoint was read (`direct_packing`); else one leaves the decoder as soon as it is
packed, and no more than one is held twice. Called by `worker.native.decoder`.
"""

import ctypes
from dataclasses import dataclass, field
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from worker.layers.attention import Attention
from worker.layers.linear import ColumnParallelLinear, RowParallelLinear, frozen
from worker.layers.mlp import GatedMLP, PlainMLP
from worker.layers.moe import MoE
from worker.layers.norm import LayerNorm, QKNorm, RMSNorm
from worker.layers.qk_layer_norm import QKLayerNorm
from worker.layers.rope_spec import RopeSpec
from worker.layers.rotary import inverse_frequencies
from worker.layers.wide_qk_norm import WideQKNorm
from worker.models.decoder import Decoder, DecoderLayer, ParallelLayer, SumNormLayer
from worker.models.spec import ModelSpec
from worker.native.moe_terms import moe_struct
from worker.native.packing import DTYPES, Order, PackedWeight, Packer, as_they_are, gated
from worker.native.structs import (
    IN_TURN,
    PARALLEL,
    SUM_NORM,
    KindStruct,
    LayerStruct,
    MatrixStruct,
    ModelStruct,
    NormStruct,
    QKVStruct,
)
from worker.parallel.group import TPGroup

_NO_NORM, _RMS_NORM, _LAYER_NORM = 0, 1, 2
_HEAD, _WIDTH = 0, 1
_MAX_HEAD_DIM = 1024
_ACTIVATIONS = {
    "silu": 0,
    "swish": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "gelu_fast": 2,
    "relu": 3,
}


def is_covered(spec: ModelSpec, dtype: torch.dtype) -> bool:
    """Whether at least a model's frame can run natively; layers are looked at one by one."""
    return dtype in DTYPES and spec.activation in _ACTIVATIONS


AnyLayer = DecoderLayer | ParallelLayer | SumNormLayer


def layers_of(decoder: Decoder) -> list[AnyLayer]:
    return [cast(AnyLayer, layer) for layer in decoder.layers]


def has_native_attention(attention: nn.Module, tp: TPGroup) -> TypeGuard[Attention]:
    if not isinstance(attention, Attention) or attention.head_dim > _MAX_HEAD_DIM:
        return False
    norm = attention.qk_norm
    # Across the width of all ranks: their sums meet within the layer.
    is_wide = isinstance(norm, WideQKNorm) or (
        isinstance(norm, QKLayerNorm) and norm.kind == "width"
    )
    return tp.size == 1 or not is_wide


def has_native_mlp(mlp: nn.Module) -> TypeGuard[GatedMLP | PlainMLP]:
    return isinstance(mlp, GatedMLP | PlainMLP | MoE)


@dataclass(slots=True)
class ModelTerms:
    """The structures, and every tensor that they point to."""

    model: ModelStruct
    layers: ctypes.Array[LayerStruct]
    kept: list[object] = field(default_factory=list)

    def weights(self) -> list[Tensor]:
        """The packed matrices."""
        return [x.data for x in self.kept if isinstance(x, PackedWeight)]


class TermsBuilder:
    """Used once for each model. With several ranks only rank 0 adds a row-parallel bias."""

    def __init__(
        self, decoder: Decoder, tp: TPGroup, packer: Packer, max_len: int, block_size: int
    ) -> None:
        self._decoder, self._spec, self._tp = decoder, decoder.spec, tp
        self._packer = packer
        self._max_len, self._block_size = max_len, block_size
        self._kept: list[object] = []
        self._kinds: dict[int, int] = {}  # by window; 0: none
        self._tables: dict[RopeSpec, tuple[int, int]] = {}

    def build(self) -> ModelTerms:
        spec = self._spec
        layers = (LayerStruct * spec.num_layers)()
        for i, layer in enumerate(layers_of(self._decoder)):
            self._fill_layer(layers[i], i, layer)
        model = ModelStruct()
        kinds = (KindStruct * max(1, len(self._kinds)))(*map(self._kind, self._kinds))
        model.dtype = DTYPES[self._decoder.embedding.weight.dtype]
        model.hidden_size, model.num_layers = spec.hidden_size, spec.num_layers
        model.num_kinds = len(self._kinds)
        model.layers, model.kinds = layers, kinds
        self._kept.append(kinds)
        self._fill_ends(model)
        return ModelTerms(model, layers, self._kept)

    def _fill_ends(self, model: ModelStruct) -> None:
        """The embedding and the head, where their width is the layers'."""
        decoder, spec = self._decoder, self._spec
        model.embedding_norm, model.final_norm = NormStruct(), self._norm(decoder.norm)
        model.embedding_multiplier, model.logit_multiplier = 1.0, spec.logit_multiplier
        model.logit_soft_cap = spec.logit_soft_cap or 0.0
        if decoder.project_in is not None:
            return
        embedding = decoder.embedding
        model.num_token_ids, _ = embedding.weight.shape
        model.first_token_id = self._tp.rank * model.num_token_ids
        model.embedding_multiplier = decoder.embedding_multiplier
        model.embedding_norm = self._norm(decoder.embedding_norm)
        if decoder.positions is not None:
            weight = decoder.positions.weight[decoder.positions.offset :].contiguous()
            model.positions = self._address(weight)
        head = self._packer.pack(decoder.lm_head.weight, decoder.lm_head.bias)
        model.head = self._keep(head)
        decoder.lm_head.weight = _nothing(head)
        if spec.tied_head:
            model.packed_embedding = head.struct()
            embedding.weight = decoder.lm_head.weight
        else:
            model.embedding = self._address(embedding.weight)

    def _fill_layer(self, struct: LayerStruct, index: int, layer: AnyLayer) -> None:
        struct.residual_multiplier = 1.0
        if isinstance(layer, DecoderLayer):
            struct.order = IN_TURN
            struct.residual_multiplier = self._spec.residual_multiplier
            struct.attention_out_norm = self._norm(layer.attention_out_norm)
            struct.mlp_out_norm = self._norm(layer.mlp_out_norm)
        elif isinstance(layer, ParallelLayer):
            struct.order, struct.has_own_mlp_norm = PARALLEL, layer.mlp_norm is not None
        else:
            struct.order = SUM_NORM
        struct.attention_norm = self._norm(layer.attention_norm)
        struct.mlp_norm = self._norm(layer.mlp_norm)
        if has_native_attention(layer.attention, self._tp):
            self._fill_attention(struct, index, layer.attention)
        if has_native_mlp(layer.mlp):
            self._fill_mlp(struct, layer.mlp)

    def _fill_attention(self, struct: LayerStruct, index: int, attention: Attention) -> None:
        kind = attention.kind
        struct.kind = self._kinds.setdefault(kind.window or 0, len(self._kinds))
        struct.attention_scale = attention.head_dim**-0.5 if kind.scale is None else kind.scale
        struct.attention_soft_cap = kind.soft_cap or 0.0
        if kind.alibi_slopes:
            struct.alibi_slopes = self._address(
                torch.tensor(kind.alibi_slopes, dtype=torch.float32)
            )
        if attention.sinks is not None:
            struct.sinks = self._address(attention.sinks.weight.float())
        struct.heads = self._heads(index, attention)
        struct.qkv = self._packed(attention.qkv)
        struct.output = self._packed_row_parallel(attention.output)

    def _heads(self, index: int, attention: Attention) -> QKVStruct:
        heads = QKVStruct()
        heads.num_heads, heads.num_kv_heads = attention.num_heads, attention.num_kv_heads
        heads.head_dim, heads.clip = attention.head_dim, attention.clip_qkv or 0.0
        self._fill_qk_norm(heads, attention.qk_norm)
        ropes = self._spec.layer_ropes or (self._spec.rope,) * self._spec.num_layers
        rope = ropes[index]
        if rope is not None:
            heads.cos, heads.sin = self._rotary_tables(rope)
            heads.rotary_dim, heads.is_interleaved = rope.rotary_dim, rope.is_interleaved
        return heads

    def _fill_qk_norm(self, heads: QKVStruct, norm: nn.Module | None) -> None:
        if norm is None:
            return
        offset = norm.offset if isinstance(norm, QKNorm) else 0.0
        heads.norm_kind = _LAYER_NORM if isinstance(norm, QKLayerNorm) else _RMS_NORM
        heads.norm_eps = norm.eps
        for part in ("q", "k"):
            weight = getattr(norm, f"{part}_weight").float() + offset
            setattr(heads, f"{part}_weight", self._address(weight))
            bias = getattr(norm, f"{part}_bias", None)
            if bias is not None:
                setattr(heads, f"{part}_bias", self._address(bias.float()))
        if isinstance(norm, WideQKNorm):
            heads.norm_span, heads.has_head_weights = _WIDTH, True
        elif isinstance(norm, QKLayerNorm):
            heads.norm_span = _WIDTH if norm.kind == "width" else _HEAD
            heads.has_head_weights = norm.kind != "head"

    def _rotary_tables(self, rope: RopeSpec) -> tuple[int, int]:
        """Cosines and sines, [max_len, rotary_dim / 2] fp32 each, shared by layers."""
        if rope not in self._tables:
            inv_freq, scale = inverse_frequencies(rope, self._max_len)
            angles = torch.outer(torch.arange(self._max_len, dtype=torch.float32), inv_freq)
            cos, sin = angles.cos() * scale, angles.sin_() * scale
            self._tables[rope] = (self._address(cos), self._address(sin))
        return self._tables[rope]

    def _fill_mlp(self, struct: LayerStruct, mlp: GatedMLP | PlainMLP | MoE) -> None:
        struct.activation = _ACTIVATIONS[self._spec.activation]
        if isinstance(mlp, MoE):
            moe = moe_struct(mlp, self._spec.hidden_size, self._tp, self._packer, self._kept)
            struct.moe = ctypes.pointer(moe)
            self._kept.append(moe)
            return
        if isinstance(mlp, GatedMLP):
            struct.is_gated = True
            struct.up = self._packed(mlp.gate_up, gated)
        else:
            struct.up = self._packed(mlp.up)
        struct.down = self._packed_row_parallel(mlp.down)

    def _packed(self, linear: ColumnParallelLinear, order: Order = as_they_are) -> MatrixStruct:
        packed = self._packer.pack(linear.weight, linear.bias, order)
        linear.weight = _nothing(packed)
        return self._keep(packed)

    def _packed_row_parallel(self, linear: RowParallelLinear) -> MatrixStruct:
        packed = self._packer.pack(linear.weight, linear.bias if self._tp.rank == 0 else None)
        linear.weight = _nothing(packed)
        return self._keep(packed)

    def _norm(self, norm: nn.Module | None) -> NormStruct:
        if norm is None or isinstance(norm, nn.Identity):
            return NormStruct()
        assert isinstance(norm, RMSNorm | LayerNorm), f"{type(norm)}"
        struct = NormStruct(eps=norm.eps)
        offset = norm.offset if isinstance(norm, RMSNorm) else 0.0
        struct.kind = _RMS_NORM if isinstance(norm, RMSNorm) else _LAYER_NORM
        if norm.weight is not None:
            struct.weight = self._address(norm.weight.float() + offset)
        bias = getattr(norm, "bias", None)
        if bias is not None:
            struct.bias = self._address(bias.float())
        return struct

    def _kind(self, window: int) -> KindStruct:
        attention = next(
            layer.attention
            for layer in layers_of(self._decoder)
            if isinstance(layer.attention, Attention)
        )
        heads = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
        return KindStruct(*heads, self._block_size, window)

    def _keep(self, packed: PackedWeight) -> MatrixStruct:
        self._kept.append(packed)
        return packed.struct()

    def _address(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _nothing(packed: PackedWeight) -> nn.Parameter:
    """Stands for a parameter that is kept packed."""
    return frozen(torch.empty(0, dtype=packed.dtype))
