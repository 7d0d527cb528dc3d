"""GPT-NeoX and Pythia: parallel residual with two norms, partial rotation, QKV woven by heads."""

from worker.models.classic import classic_spec, grouped_qkv, head_targets, tied_names, with_bias
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, fused, layer_targets
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    has_bias = bool(raw.get("attention_bias", True))
    return classic_spec(
        config,
        str(raw.get("hidden_act", "gelu")),
        norm_eps=float(raw.get("layer_norm_eps", 1e-5)),
        rope=rope_spec(config),
        parallel_norms=2 if raw.get("use_parallel_residual", True) else 0,
        qkv_bias=has_bias,
        output_bias=has_bias,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    qkv = fused("attention.qkv", grouped_qkv(spec), spec.num_kv_heads)
    layer: dict[str, Targets] = {
        **with_bias("input_layernorm", "attention_norm"),
        **with_bias("attention.query_key_value", qkv, spec.qkv_bias),
        **with_bias("attention.dense", "attention.output", spec.output_bias),
        **with_bias("post_attention_layernorm", "mlp_norm"),
        **with_bias("mlp.dense_h_to_4h", "mlp.up"),
        **with_bias("mlp.dense_4h_to_h", "mlp.down"),
    }
    targets: dict[str, Targets] = {
        "gpt_neox.embed_in.weight": Target("embedding.weight"),
        **with_bias("gpt_neox.final_layer_norm", "norm"),
        **head_targets(spec, "embed_out"),
        **layer_targets("gpt_neox.layers.{}.", spec.num_layers, layer),
    }
    return WeightMap(
        targets,
        # Causal masks and frequencies that old versions of transformers saved.
        ignored_suffixes=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
        ignored_names=tied_names(spec, "embed_out.weight"),
        aliases={"lm_head.weight": "embed_out.weight"},
    )


FAMILY = Family(("GPTNeoXForCausalLM",), build_spec, build_weight_map)
