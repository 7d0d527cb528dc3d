"""GPT-J: attention and MLP side by side after one norm, rotation of neighbouring pairs."""

from worker.layers.rope_spec import RopeSpec
from worker.models.classic import classic_spec, head_targets, tied_names, with_bias
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, layer_targets
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    rotary_dim = int(raw.get("rotary_dim") or config.head_dim)
    return classic_spec(
        config,
        str(raw.get("activation_function", "gelu_new")),
        rope=RopeSpec(10000.0, rotary_dim, is_interleaved=True, max_position=config.max_position),
        parallel_norms=1,
        qkv_bias=False,
        output_bias=False,
        head_bias=True,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("ln_1", "attention_norm"),
        "attn.out_proj.weight": Target("attention.output.weight"),
        **with_bias("mlp.fc_in", "mlp.up"),
        **with_bias("mlp.fc_out", "mlp.down"),
    }
    for part in "qkv":
        layer[f"attn.{part}_proj.weight"] = Target("attention.qkv.weight", part)
    targets: dict[str, Targets] = {
        "transformer.wte.weight": Target("embedding.weight"),
        **with_bias("transformer.ln_f", "norm"),
        **head_targets(spec),
        **layer_targets("transformer.h.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets,
        ignored_suffixes=(".attn.bias", ".attn.masked_bias", ".attn.embed_positions"),
        ignored_names=tied_names(spec),
    )


FAMILY = Family(("GPTJForCausalLM",), build_spec, build_weight_map)
