"""Bloom: ALiBi, a norm on the embedding, QKV woven by heads."""

from worker.models.classic import (
    alibi_slopes,
    classic_spec,
    grouped_qkv,
    head_targets,
    tied_names,
    unsupported,
    with_bias,
)
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, fused, layer_targets
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    option = "apply_residual_connection_post_layernorm"
    if config.raw.get(option, False):
        raise unsupported(config, option, True)
    return classic_spec(
        config,
        "gelu_pytorch_tanh",
        alibi_slopes=alibi_slopes(config.num_heads),
        embedding_norm=True,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    qkv = fused("attention.qkv", grouped_qkv(spec), spec.num_kv_heads)
    layer: dict[str, Targets] = {
        **with_bias("input_layernorm", "attention_norm"),
        **with_bias("self_attention.query_key_value", qkv),
        **with_bias("self_attention.dense", "attention.output"),
        **with_bias("post_attention_layernorm", "mlp_norm"),
        **with_bias("mlp.dense_h_to_4h", "mlp.up"),
        **with_bias("mlp.dense_4h_to_h", "mlp.down"),
    }
    targets: dict[str, Targets] = {
        "transformer.word_embeddings.weight": Target("embedding.weight"),
        **with_bias("transformer.word_embeddings_layernorm", "embedding_norm"),
        **with_bias("transformer.ln_f", "norm"),
        **head_targets(spec),
        **layer_targets("transformer.h.{}.", spec.num_layers, layer),
    }
    return WeightMap(targets, ignored_names=tied_names(spec), optional_prefix="transformer.")


FAMILY = Family(("BloomForCausalLM",), build_spec, build_weight_map)
