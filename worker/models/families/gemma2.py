"""Gemma 2: Gemma with norms around each sub-layer, soft-caps, and a window in every other layer."""

from collections.abc import Mapping
from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import gemma, llama
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.spec import ModelSpec

NORMS: Mapping[str, Targets] = {
    "input_layernorm.weight": Target("attention_norm.weight"),
    "post_attention_layernorm.weight": Target("attention_out_norm.weight"),
    "pre_feedforward_layernorm.weight": Target("mlp_norm.weight"),
    "post_feedforward_layernorm.weight": Target("mlp_out_norm.weight"),
}


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    alternating = tuple(
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(config.num_layers)
    )
    kinds = raw.get("layer_types") or alternating
    window = raw.get("sliding_window", 4096)
    return replace(
        gemma.build_spec(config),
        norm_place="around",
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        attention_scale=float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_soft_cap=raw.get("attn_logit_softcapping", 50.0),
        logit_soft_cap=raw.get("final_logit_softcapping", 30.0),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer = {**NORMS, **llama.attention_targets(spec), **llama.mlp_targets(spec)}
    return llama.weight_map(spec, layer)


FAMILY = Family(("Gemma2ForCausalLM",), build_spec, build_weight_map)
