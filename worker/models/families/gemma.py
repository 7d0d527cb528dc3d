"""Gemma 1: RMSNorm by one plus the weight, embeddings scaled by sqrt(hidden), GeGLU with tanh."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or "gelu"
    return replace(
        llama.build_spec(config),
        # The first configs say "gelu"; the models were trained with its tanh form.
        activation="gelu_pytorch_tanh" if activation == "gelu" else str(activation),
        norm_offset=1.0,
        embedding_multiplier=config.hidden_size**0.5,
        tied_head=bool(raw.get("tie_word_embeddings", True)),
        mlp_bias=False,
    )


FAMILY = Family(("GemmaForCausalLM",), build_spec, llama.build_weight_map)
