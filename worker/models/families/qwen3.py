"""Qwen3 (dense): Llama with normalized query and key heads and a head_dim of its own."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.families.qwen2 import layer_windows
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    return replace(
        llama.build_spec(config),
        windows=layer_windows(config),
        qk_norm=True,
        mlp_bias=False,
    )


FAMILY = Family(("Qwen3ForCausalLM",), build_spec, llama.build_weight_map)
