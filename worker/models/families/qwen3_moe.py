"""Qwen3 MoE: Qwen3 with experts, none of them shared."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import qwen2_moe, qwen3
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    return replace(qwen3.build_spec(config), moe=qwen2_moe.moe_spec(config))


FAMILY = Family(("Qwen3MoeForCausalLM",), build_spec, qwen2_moe.build_weight_map)
