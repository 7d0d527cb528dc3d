"""OLMo 2: norms after the sub-layers, and over the whole width of queries and keys."""

from collections.abc import Mapping
from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.spec import ModelSpec

NORMS: Mapping[str, Targets] = {
    "post_attention_layernorm.weight": Target("attention_out_norm.weight"),
    "post_feedforward_layernorm.weight": Target("mlp_out_norm.weight"),
}


def build_spec(config: ModelConfig) -> ModelSpec:
    return replace(
        llama.build_spec(config),
        norm_eps=float(config.raw.get("rms_norm_eps", 1e-5)),
        norm_place="after",
        qk_norm=True,
        wide_qk_norm=True,
        mlp_bias=False,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer = {**NORMS, **llama.attention_targets(spec), **llama.mlp_targets(spec)}
    return llama.weight_map(spec, layer)


FAMILY = Family(("Olmo2ForCausalLM",), build_spec, build_weight_map)
