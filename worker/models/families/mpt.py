"""MPT: ALiBi, LayerNorm and projections without biases, a tied head.

`MPTForCausalLM` is what the published checkpoints call it, `MptForCausalLM` what transformers does.
Options that transformers reads but does not apply (qk_ln, logit_scale, no_bias: false) follow the
original, LLM Foundry.
"""

from typing import Any

from worker.models.classic import (
    alibi_slopes,
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
    attention: dict[str, Any] = raw.get("attn_config") or {}
    _check_options(config, attention)
    has_alibi = bool(attention.get("alibi", config.architecture == "MptForCausalLM"))
    has_bias = config.architecture == "MPTForCausalLM" and not raw.get("no_bias", False)
    has_positions = not has_alibi and raw.get("learned_pos_emb", True)
    scale = attention.get("softmax_scale")
    return classic_spec(
        config,
        "gelu",
        norm_bias=has_bias,
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=has_bias,
        alibi_slopes=alibi_slopes(config.num_heads, float(attention.get("alibi_bias_max", 8)))
        if has_alibi
        else (),
        num_learned_positions=config.max_position if has_positions else 0,
        clip_qkv=attention.get("clip_qkv") or None,
        qk_layer_norm="width" if attention.get("qk_ln", False) else None,
        attention_scale=None if scale is None else float(scale),
        logit_multiplier=_logit_scale(config),
    )


def _check_options(config: ModelConfig, attention: dict[str, Any]) -> None:
    norm_type = str(config.raw.get("norm_type", "low_precision_layernorm"))
    if not norm_type.endswith("layernorm"):
        raise unsupported(config, "norm_type", norm_type)
    for option in ("prefix_lm", "rope"):
        if attention.get(option):
            raise unsupported(config, option, attention[option])


def _logit_scale(config: ModelConfig) -> float:
    scale = config.raw.get("logit_scale")
    if scale == "inv_sqrt_d_model":
        return float(config.hidden_size**-0.5)
    return 1.0 if scale is None else float(scale)


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("norm_1", "attention_norm", spec.norm_bias),
        **with_bias("attn.Wqkv", fused("attention.qkv", fused_qkv(spec)), spec.qkv_bias),
        **with_bias("attn.out_proj", "attention.output", spec.output_bias),
        **with_bias("norm_2", "mlp_norm", spec.norm_bias),
        **with_bias("ffn.up_proj", "mlp.up", spec.mlp_bias),
        **with_bias("ffn.down_proj", "mlp.down", spec.mlp_bias),
    }
    if spec.qk_layer_norm is not None:
        for part in "qk":
            for kind in ("weight", "bias") if spec.norm_bias else ("weight",):
                layer[f"attn.{part}_ln.{kind}"] = Target(f"attention.qk_norm.{part}_{kind}")
    targets: dict[str, Targets] = {
        "transformer.wte.weight": Target("embedding.weight"),
        **with_bias("transformer.norm_f", "norm", spec.norm_bias),
        **head_targets(spec),
        **layer_targets("transformer.blocks.{}.", spec.num_layers, layer),
    }
    if spec.num_learned_positions:
        targets["transformer.wpe.weight"] = Target("positions.weight")
    return WeightMap(targets, ignored_names=tied_names(spec))


FAMILY = Family(("MPTForCausalLM", "MptForCausalLM"), build_spec, build_weight_map)
