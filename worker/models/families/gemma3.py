"""Gemma 3 (text): Gemma 2 with query and key norms instead of soft-caps, five windowed layers to
each full one, and a RoPE base of its own for each of the two kinds.

Of the larger models, which also see, the text part is served.
"""

from dataclasses import replace

from worker.errors import CheckpointError
from worker.models.config import ModelConfig
from worker.models.families import gemma2
from worker.models.family import Family, WeightMap
from worker.models.rope import rope_spec_of_kind
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    if raw.get("use_bidirectional_attention"):
        raise CheckpointError(f"{config.path}: attention in both directions is not supported")
    every = int(raw.get("sliding_window_pattern") or 6)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if (layer + 1) % every else "full_attention"
        for layer in range(config.num_layers)
    ]
    window = raw.get("sliding_window", 4096)
    ropes = {
        "full_attention": rope_spec_of_kind(config, "full_attention", 1_000_000.0),
        "sliding_attention": rope_spec_of_kind(
            config, "sliding_attention", float(raw.get("rope_local_base_freq", 10_000.0))
        ),
    }
    return replace(
        gemma2.build_spec(config),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        layer_ropes=tuple(ropes[kind] for kind in kinds),
        attention_soft_cap=raw.get("attn_logit_softcapping"),
        logit_soft_cap=raw.get("final_logit_softcapping"),
        qk_norm=True,
    )


def build_text_part_map(spec: ModelSpec) -> WeightMap:
    text = gemma2.build_weight_map(spec)
    return WeightMap(
        {f"language_model.{name}": targets for name, targets in text.targets.items()},
        ignored_names=frozenset(f"language_model.{name}" for name in text.ignored_names),
        ignored_prefixes=("vision_tower.", "multi_modal_projector."),
    )


FAMILY = Family(("Gemma3ForCausalLM",), build_spec, gemma2.build_weight_map)
TEXT_PART = Family(("Gemma3ForConditionalGeneration",), build_spec, build_text_part_map)
