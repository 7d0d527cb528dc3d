"""Cohere (Command R, Aya): attention and gated MLP side by side after one LayerNorm without bias,
rotation of neighbouring pairs, scaled logits.
"""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, WeightMap
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    return replace(
        llama.build_spec(config),
        norm_kind="layer",
        norm_eps=float(raw.get("layer_norm_eps", 1e-5)),
        rope=replace(rope_spec(config), is_interleaved=True),
        parallel_norms=1,
        mlp_bias=False,
        qk_layer_norm="each_head" if raw.get("use_qk_norm", False) else None,
        logit_multiplier=float(raw.get("logit_scale", 0.0625)),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    weights = llama.build_weight_map(replace(spec, qk_norm=spec.qk_layer_norm is not None))
    targets = {
        name: target
        for name, target in weights.targets.items()
        if not name.endswith("post_attention_layernorm.weight")
    }
    return replace(weights, targets=targets)


FAMILY = Family(("CohereForCausalLM",), build_spec, build_weight_map)
