"""What distinguishes one decoder from another, as data: families write it, the decoder obeys."""

from dataclasses import dataclass

from worker.layers.rope_spec import RopeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder of pre-norm RMSNorm blocks with rotary grouped-query attention and a gated MLP.

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
    rope: RopeSpec
    activation: str  # a name in layers/activation.py
    windows: tuple[int | None, ...]  # per layer: tokens a token sees, itself included; None: all
    qkv_bias: bool = False
    output_bias: bool = False  # of attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotation
    tied_head: bool = False
