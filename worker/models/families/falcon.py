"""Falcon in its three forms: 7B (one KV head, one norm), 40B and 11B (grouped), RW (ALiBi)."""

import struct

from worker.models.classic import (
    alibi_slopes,
    classic_spec,
    grouped_qkv,
    head_targets,
    tied_names,
    with_bias,
)
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, fused, layer_targets
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    has_bias = bool(raw.get("bias", False))
    has_alibi = bool(raw.get("alibi", False))
    return classic_spec(
        config,
        str(raw.get("activation") or "gelu"),
        rope=None if has_alibi else rope_spec(config),
        alibi_slopes=_slopes(config) if has_alibi else (),
        parallel_norms=_parallel_norms(config),
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=has_bias,
    )


def _parallel_norms(config: ModelConfig) -> int:
    raw = config.raw
    if raw.get("new_decoder_architecture", False):
        return int(raw.get("num_ln_in_parallel_attn") or 2)
    return 1 if raw.get("parallel_attn", True) else 0


def _slopes(config: ModelConfig) -> tuple[float, ...]:
    """Falcon adds the bias before it scales the scores, and computes it in bfloat16."""
    scale = config.head_dim**-0.5
    return tuple(_as_bfloat16(slope) * scale for slope in alibi_slopes(config.num_heads))


def _as_bfloat16(x: float) -> float:
    """The nearest, of two the even one. Without torch: the memory plan reads families too."""
    bits = int(struct.unpack("<I", struct.pack("<f", x))[0])
    bits += 0x7FFF + (bits >> 16 & 1)
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])


def build_weight_map(spec: ModelSpec) -> WeightMap:
    qkv = fused("attention.qkv", grouped_qkv(spec), spec.num_kv_heads)
    first, second = "input_layernorm", "post_attention_layernorm"
    if spec.parallel_norms == 2:
        first, second = "ln_attn", "ln_mlp"
    layer: dict[str, Targets] = {
        **with_bias(first, "attention_norm"),
        **with_bias("self_attention.query_key_value", qkv, spec.qkv_bias),
        **with_bias("self_attention.dense", "attention.output", spec.output_bias),
        **with_bias("mlp.dense_h_to_4h", "mlp.up", spec.mlp_bias),
        **with_bias("mlp.dense_4h_to_h", "mlp.down", spec.mlp_bias),
    }
    if spec.parallel_norms != 1:
        layer |= with_bias(second, "mlp_norm")
    targets: dict[str, Targets] = {
        "transformer.word_embeddings.weight": Target("embedding.weight"),
        **with_bias("transformer.ln_f", "norm"),
        **head_targets(spec),
        **layer_targets("transformer.h.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets, ignored_suffixes=("rotary_emb.inv_freq",), ignored_names=tied_names(spec)
    )


# The first checkpoints name RefinedWeb, their training data.
FAMILY = Family(("FalconForCausalLM", "RWForCausalLM"), build_spec, build_weight_map)
