"""GLM-4.5 and its Air: Llama's attention with half of each head rotated, DeepSeek V3's experts."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import deepseek, llama
from worker.models.family import Family, WeightMap
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    return replace(
        llama.build_spec(config),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        qk_norm=bool(raw.get("use_qk_norm", False)),
        output_bias=False,
        mlp_bias=False,
        moe=deepseek.moe_spec(config, is_v3=True),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    return deepseek.weight_map(spec, llama.attention_targets(spec))


FAMILY = Family(("Glm4MoeForCausalLM",), build_spec, build_weight_map)
