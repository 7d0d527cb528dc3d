"""GLM-4: half of each head rotated by pairs, fused gate and up, and in GLM-4-0414 norms around each
sub-layer. The first GLM-4 (`GlmForCausalLM`) has them before only.
"""

from collections.abc import Mapping
from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama, phi3
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec

AROUND: Mapping[str, Targets] = {
    "post_self_attn_layernorm.weight": Target("attention_out_norm.weight"),
    "post_mlp_layernorm.weight": Target("mlp_out_norm.weight"),
}


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    return replace(
        llama.build_spec(config),
        norm_eps=float(raw.get("rms_norm_eps", 1.5625e-7)),
        norm_place="around" if config.architecture == "Glm4ForCausalLM" else "before",
        rope=replace(rope_spec(config), is_interleaved=True),
        qkv_bias=bool(raw.get("attention_bias", True)),
        output_bias=False,
        mlp_bias=False,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **llama.NORMS,
        **llama.attention_targets(spec),
        **phi3.mlp_targets(spec),
    }
    if spec.norm_place == "around":
        layer |= AROUND
    return llama.weight_map(spec, layer)


FAMILY = Family(("Glm4ForCausalLM", "GlmForCausalLM"), build_spec, build_weight_map)
