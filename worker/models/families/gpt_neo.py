"""GPT-Neo (and TinyStories): learned positions, unscaled scores, a window in some layers."""

from worker.models.classic import classic_spec, head_targets, tied_names, unsupported, with_bias
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, layer_targets
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    kinds = [
        kind
        for pattern, count in raw.get("attention_types") or [[["global", "local"], 12]]
        for kind in pattern * count
    ]
    if len(kinds) != config.num_layers:
        raise unsupported(config, "attention_types", raw.get("attention_types"))
    window = int(raw.get("window_size", 256))
    return classic_spec(
        config,
        str(raw.get("activation_function", "gelu_new")),
        windows=tuple(window if kind == "local" else None for kind in kinds),
        num_learned_positions=config.max_position,
        attention_scale=1.0,
        qkv_bias=False,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("ln_1", "attention_norm"),
        **with_bias("attn.attention.out_proj", "attention.output"),
        **with_bias("ln_2", "mlp_norm"),
        **with_bias("mlp.c_fc", "mlp.up"),
        **with_bias("mlp.c_proj", "mlp.down"),
    }
    for part in "qkv":
        layer[f"attn.attention.{part}_proj.weight"] = Target("attention.qkv.weight", part)
    targets: dict[str, Targets] = {
        "transformer.wte.weight": Target("embedding.weight"),
        "transformer.wpe.weight": Target("positions.weight"),
        **with_bias("transformer.ln_f", "norm"),
        **head_targets(spec),
        **layer_targets("transformer.h.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets,
        ignored_suffixes=(".attention.bias", ".attention.masked_bias"),
        ignored_names=tied_names(spec),
    )


FAMILY = Family(("GPTNeoForCausalLM",), build_spec, build_weight_map)
