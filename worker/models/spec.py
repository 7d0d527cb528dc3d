"""What distinguishes one decoder from another, as data: families write it, the decoder obeys."""

from dataclasses import dataclass
from typing import Literal

from worker.layers.mla_spec import MLASpec
from worker.layers.moe_spec import MoESpec
from worker.layers.rope_spec import RopeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder; by default of pre-norm RMSNorm blocks with rotary attention and a gated MLP.

    Immutable. Every field is honoured by `models/decoder.py`; one that a new family needs is added
    together with its implementation.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeSpec | None  # None: no rotation in any layer
    activation: str  # a name in layers/activation.py
    windows: tuple[int | None, ...]  # per layer: tokens a token sees, itself included; None: all
    qkv_bias: bool = False
    output_bias: bool = False  # of attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotation
    tied_head: bool = False
    # A sub-layer's norm stands before it, after it (its output is normed, then added), or both.
    # "sum": the norm is taken of the sum, as in the first transformers.
    norm_place: Literal["before", "after", "around", "sum"] = "before"
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False  # layer only
    norm_weight: bool = True
    # Attention and MLP read the same input and are added together, through one norm or one each.
    parallel_norms: Literal[0, 1, 2] = 0  # 0: one after the other
    embedding_norm: bool = False
    final_norm: bool = True
    embedding_size: int | None = None  # if not hidden_size: projected on the way in and out
    num_learned_positions: int = 0  # 0: none
    position_offset: int = 0  # rows before the first position's
    alibi_slopes: tuple[float, ...] = ()  # one per head
    clip_qkv: float | None = None
    # LayerNorm of queries and keys: weights shared by heads, of each head (in the
    # checkpoint together or apart), or across all of them.
    qk_layer_norm: Literal["head", "each_head", "apart", "width"] | None = None
    is_gated: bool = True  # the MLP
    head_bias: bool = False
    norm_offset: float = 0.0  # added to the weights of all norms
    wide_qk_norm: bool = False  # qk_norm over all heads together instead of each by itself
    # Per layer where layers differ, instead of `rope`; None: no rotation.
    layer_ropes: tuple[RopeSpec | None, ...] = ()
    attention_scale: float | None = None  # of the scores; None: head_dim ** -0.5
    attention_soft_cap: float | None = None
    attention_sinks: bool = False  # a learned score per head that joins the softmax
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of a sub-layer's output before it is added
    logit_multiplier: float = 1.0
    logit_soft_cap: float | None = None
    moe: MoESpec | None = None
    # Latent attention; num_kv_heads is then 1 and head_dim what a token has in the cache.
    mla: MLASpec | None = None
