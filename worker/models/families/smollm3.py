"""SmolLM3: Llama without a rotation in every fourth layer."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    spec = llama.build_spec(config)
    every = int(raw.get("no_rope_layer_interval") or 4)
    # In spite of its name the list has ones where there is a rotation.
    has_rope = raw.get("no_rope_layers") or [
        (layer + 1) % every != 0 for layer in range(config.num_layers)
    ]
    window = raw.get("sliding_window") if raw.get("use_sliding_window", False) else None
    kinds = raw.get("layer_types") or [
        "full_attention" if has else "sliding_attention" for has in has_rope
    ]
    return replace(
        spec,
        layer_ropes=tuple(spec.rope if has else None for has in has_rope),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        tied_head=bool(raw.get("tie_word_embeddings", True)),
    )


FAMILY = Family(("SmolLM3ForCausalLM",), build_spec, llama.build_weight_map)
