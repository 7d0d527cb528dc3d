"""Cohere 2 (Command R7B, Command A): Cohere with a rotation in its windowed layers only."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import cohere
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    spec = cohere.build_spec(config)
    every = int(raw.get("sliding_window_pattern") or 4)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if (layer + 1) % every else "full_attention"
        for layer in range(config.num_layers)
    ]
    is_windowed = [kind == "sliding_attention" for kind in kinds]
    window = raw.get("sliding_window", 4096)
    return replace(
        spec,
        windows=tuple(window if windowed else None for windowed in is_windowed),
        layer_ropes=tuple(spec.rope if windowed and window else None for windowed in is_windowed),
        qk_layer_norm=None,
    )


FAMILY = Family(("Cohere2ForCausalLM",), build_spec, cohere.build_weight_map)
