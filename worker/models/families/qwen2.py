"""Qwen2, Qwen2.5 and QwQ: Llama with biases on the query, key and value projections."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    return replace(
        llama.build_spec(config),
        windows=layer_windows(config),
        qkv_bias=True,
        output_bias=False,
        mlp_bias=False,
    )


def layer_windows(config: ModelConfig) -> tuple[int | None, ...]:
    """The window is written even where switched off; it holds from `max_window_layers` on."""
    raw = config.raw
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    kinds = raw.get("layer_types") or [
        "full_attention" if layer < raw.get("max_window_layers", 28) else "sliding_attention"
        for layer in range(config.num_layers)
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


FAMILY = Family(("Qwen2ForCausalLM",), build_spec, llama.build_weight_map)
