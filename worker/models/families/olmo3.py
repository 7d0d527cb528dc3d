"""OLMo 3: OLMo 2 with a window in three of four layers, where RoPE is not stretched."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import olmo2
from worker.models.family import Family
from worker.models.rope import rope_spec_of_kind
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    kinds = raw.get("layer_types") or [
        "sliding_attention" if (layer + 1) % 4 else "full_attention"
        for layer in range(config.num_layers)
    ]
    window = raw.get("sliding_window", 4096)
    theta = float(raw.get("rope_theta", 500_000.0))
    return replace(
        olmo2.build_spec(config),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        layer_ropes=tuple(rope_spec_of_kind(config, kind, theta) for kind in kinds),
    )


FAMILY = Family(("Olmo3ForCausalLM",), build_spec, olmo2.build_weight_map)
