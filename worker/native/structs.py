"""`csrc/model.h` and `csrc/terms.h` for ctypes, field by field: data only.

Pointers are plain addresses; whoever fills a structure keeps alive what it points to.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

FLOAT32, BFLOAT16 = 0, 1
IN_TURN, PARALLEL, SUM_NORM = 0, 1, 2  # LayerOrder


class MatrixStruct(ctypes.Structure):
    """A packed weight; data None: this part is not computed natively."""

    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        ("codes", c_void_p),
        ("strays", c_void_p),
        ("num_panels", c_int32),
        ("depth", c_int32),
    )


class KindStruct(ctypes.Structure):
    """What attention of some layers has in common."""

    _fields_ = (
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("window", c_int32),
    )


class LayerCacheStruct(ctypes.Structure):
    _fields_ = (("k", c_void_p), ("v", c_void_p), ("group", c_int32))


class GroupStruct(ctypes.Structure):
    """Where the tokens of a group of layers are."""

    _fields_ = (
        ("slots", c_void_p),  # [T] int64
        ("block_tables", c_void_p),  # [R, table_width] int32
    )


class StepStruct(ctypes.Structure):
    """A step's layout. T tokens, R sequences."""

    _fields_ = (
        ("token_ids", c_void_p),  # [T] int64
        ("positions", c_void_p),  # [T] int64
        ("groups", ctypes.POINTER(GroupStruct)),
        ("query_lens", c_void_p),  # [R] int32
        ("context_lens", c_void_p),  # [R] int32
        ("num_tokens", c_int32),
        ("num_sequences", c_int32),
        ("table_width", c_int32),
    )


class LayerAttentionStruct(ctypes.Structure):
    """One layer's attention by itself."""

    _fields_ = (
        ("dtype", c_int32),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("alibi_slopes", c_void_p),  # [heads] fp32
        ("sinks", c_void_p),  # [heads] fp32
        ("q", c_void_p),  # [T, q_stride] fp32
        ("q_stride", c_int64),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("out", c_void_p),  # [T, out_stride], of the cache's type
        ("out_stride", c_int64),
        ("block_tables", c_void_p),  # [R, table_width] int32
    )


class NormStruct(ctypes.Structure):
    """kind: 0 none, 1 RMSNorm, 2 LayerNorm."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("kind", c_int32),
        ("eps", c_float),
    )


class QKVStruct(ctypes.Structure):
    """From the fused product's rows to queries and cache."""

    _fields_ = (
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("norm_kind", c_int32),
        ("norm_span", c_int32),
        ("has_head_weights", c_int32),
        ("norm_eps", c_float),
        ("clip", c_float),
        ("q_weight", c_void_p),
        ("k_weight", c_void_p),
        ("q_bias", c_void_p),
        ("k_bias", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rotary_dim", c_int32),
        ("is_interleaved", c_int32),
    )


class MoEStruct(ctypes.Structure):
    """A mixture of experts in place of an MLP."""

    _fields_ = (
        ("router", MatrixStruct),
        ("choice_bias", c_void_p),
        ("up", ctypes.POINTER(MatrixStruct)),
        ("down", ctypes.POINTER(MatrixStruct)),
        ("shared_up", MatrixStruct),
        ("shared_down", MatrixStruct),
        ("shared_gate", c_void_p),
        ("router_size", c_int32),
        ("num_experts", c_int32),
        ("first_expert", c_int32),
        ("num_own", c_int32),
        ("top_k", c_int32),
        ("renormalize", c_int32),
        ("is_sigmoid", c_int32),
        ("num_groups", c_int32),
        ("top_groups", c_int32),
        ("best_of_group", c_int32),
        ("weight_scale", c_float),
        ("swiglu_alpha", c_float),
        ("swiglu_limit", c_float),
    )


class LayerStruct(ctypes.Structure):
    _fields_ = (
        ("order", c_int32),
        ("has_own_mlp_norm", c_int32),
        ("residual_multiplier", c_float),
        ("kind", c_int32),
        ("attention_norm", NormStruct),
        ("attention_out_norm", NormStruct),
        ("mlp_norm", NormStruct),
        ("mlp_out_norm", NormStruct),
        ("qkv", MatrixStruct),
        ("output", MatrixStruct),
        ("up", MatrixStruct),
        ("down", MatrixStruct),
        ("heads", QKVStruct),
        ("attention_scale", c_float),
        ("attention_soft_cap", c_float),
        ("alibi_slopes", c_void_p),
        ("sinks", c_void_p),
        ("activation", c_int32),
        ("is_gated", c_int32),
        ("moe", ctypes.POINTER(MoEStruct)),
    )


class ModelStruct(ctypes.Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("hidden_size", c_int32),
        ("num_layers", c_int32),
        ("num_kinds", c_int32),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("kinds", ctypes.POINTER(KindStruct)),
        ("packed_embedding", MatrixStruct),
        ("embedding", c_void_p),
        ("first_token_id", c_int64),
        ("num_token_ids", c_int64),
        ("embedding_multiplier", c_float),
        ("positions", c_void_p),
        ("embedding_norm", NormStruct),
        ("final_norm", NormStruct),
        ("head", MatrixStruct),
        ("logit_multiplier", c_float),
        ("logit_soft_cap", c_float),
    )
