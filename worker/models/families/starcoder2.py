"""StarCoder2: rotary grouped-query attention in a sliding window, LayerNorm, a plain MLP."""

from worker.models.classic import classic_spec, head_targets, tied_names, with_bias
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, layer_targets
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    has_bias = bool(raw.get("use_bias", True))
    return classic_spec(
        config,
        str(raw.get("hidden_act", "gelu_pytorch_tanh")),
        norm_eps=float(raw.get("norm_epsilon", 1e-5)),
        rope=rope_spec(config),
        windows=(raw.get("sliding_window"),) * config.num_layers,
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=has_bias,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("input_layernorm", "attention_norm"),
        **with_bias("self_attn.o_proj", "attention.output", spec.output_bias),
        **with_bias("post_attention_layernorm", "mlp_norm"),
        **with_bias("mlp.c_fc", "mlp.up", spec.mlp_bias),
        **with_bias("mlp.c_proj", "mlp.down", spec.mlp_bias),
    }
    for part in "qkv":
        target = Target("attention.qkv", part)
        layer |= with_bias(f"self_attn.{part}_proj", target, spec.qkv_bias)
    targets: dict[str, Targets] = {
        "model.embed_tokens.weight": Target("embedding.weight"),
        **with_bias("model.norm", "norm"),
        **head_targets(spec),
        **layer_targets("model.layers.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets, ignored_suffixes=("rotary_emb.inv_freq",), ignored_names=tied_names(spec)
    )


FAMILY = Family(("Starcoder2ForCausalLM",), build_spec, build_weight_map)
