"""Phi-1, 1.5 and 2: attention and MLP side by side after one norm, partial rotation, all biases."""

from worker.models.classic import classic_spec, head_targets, tied_names, with_bias
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, layer_targets
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    return classic_spec(
        config,
        str(raw.get("hidden_act", "gelu_new")),
        norm_eps=float(raw.get("layer_norm_eps", 1e-5)),
        rope=rope_spec(config),
        parallel_norms=1,
        qk_layer_norm="head" if raw.get("qk_layernorm", False) else None,
        head_bias=True,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("input_layernorm", "attention_norm"),
        **with_bias("self_attn.dense", "attention.output"),
        **with_bias("mlp.fc1", "mlp.up"),
        **with_bias("mlp.fc2", "mlp.down"),
    }
    for part in "qkv":
        layer |= with_bias(f"self_attn.{part}_proj", Target("attention.qkv", part))
    if spec.qk_layer_norm is not None:
        for part in "qk":
            for kind in ("weight", "bias"):
                target = Target(f"attention.qk_norm.{part}_{kind}")
                layer[f"self_attn.{part}_layernorm.{kind}"] = target
    targets: dict[str, Targets] = {
        "model.embed_tokens.weight": Target("embedding.weight"),
        **with_bias("model.final_layernorm", "norm"),
        **head_targets(spec),
        **layer_targets("model.layers.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets, ignored_suffixes=("rotary_emb.inv_freq",), ignored_names=tied_names(spec)
    )


FAMILY = Family(("PhiForCausalLM",), build_spec, build_weight_map)
