"""Granite: Llama with multipliers on embeddings, scores, residuals and logits."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    return replace(
        llama.build_spec(config),
        embedding_multiplier=float(raw.get("embedding_multiplier", 1.0)),
        attention_scale=float(raw.get("attention_multiplier", 1.0)),
        residual_multiplier=float(raw.get("residual_multiplier", 1.0)),
        logit_multiplier=1.0 / float(raw.get("logits_scaling", 1.0)),
    )


FAMILY = Family(("GraniteForCausalLM",), build_spec, llama.build_weight_map)
