"""Mistral: Llama without biases, with its own head_dim and, in version 0.1, a sliding window."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    # Absent means 4096 and null means none, as the family's published configs have it.
    window = config.raw.get("sliding_window", 4096)
    return replace(
        llama.build_spec(config),
        windows=(window,) * config.num_layers,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )


FAMILY = Family(("MistralForCausalLM",), build_spec, llama.build_weight_map)
