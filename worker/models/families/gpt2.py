"""GPT-2 and its kin: learned positions, LayerNorm, weights saved as [in, out]."""

from worker.models.classic import (
    classic_spec,
    fused_qkv,
    head_targets,
    tied_names,
    unsupported,
    with_bias,
)
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, fused, layer_targets
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    for option in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if raw.get(option, False):
            raise unsupported(config, option, raw[option])
    return classic_spec(
        config,
        str(raw.get("activation_function", "gelu_new")),
        num_learned_positions=config.max_position,
        attention_scale=None if raw.get("scale_attn_weights", True) else 1.0,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("ln_1", "attention_norm"),
        **with_bias("attn.c_attn", fused("attention.qkv", fused_qkv(spec), is_transposed=True)),
        **with_bias("attn.c_proj", Target("attention.output", is_transposed=True)),
        **with_bias("ln_2", "mlp_norm"),
        **with_bias("mlp.c_fc", Target("mlp.up", is_transposed=True)),
        **with_bias("mlp.c_proj", Target("mlp.down", is_transposed=True)),
    }
    targets: dict[str, Targets] = {
        "transformer.wte.weight": Target("embedding.weight"),
        "transformer.wpe.weight": Target("positions.weight"),
        **with_bias("transformer.ln_f", "norm"),
        **head_targets(spec),
        **layer_targets("transformer.h.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets,
        ignored_suffixes=(".attn.bias", ".attn.masked_bias"),  # causal masks, saved as buffers
        ignored_names=tied_names(spec),
        optional_prefix="transformer.",
    )


FAMILY = Family(("GPT2LMHeadModel",), build_spec, build_weight_map)
