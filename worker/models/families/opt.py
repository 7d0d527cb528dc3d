"""OPT: learned positions with two unused rows in front, ReLU.

The 350m form norms the sums instead of the inputs and has an embedding narrower than the model.
"""

from worker.models.classic import classic_spec, head_targets, tied_names, with_bias
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, layer_targets
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    is_before = bool(raw.get("do_layer_norm_before", True))
    has_bias = bool(raw.get("enable_bias", True))
    has_scale = bool(raw.get("layer_norm_elementwise_affine", True))
    return classic_spec(
        config,
        str(raw.get("activation_function", "relu")),
        norm_eps=1e-5,
        norm_place="before" if is_before else "sum",
        norm_weight=has_scale,
        norm_bias=has_scale,
        final_norm=is_before and not raw.get("_remove_final_layer_norm", False),
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=has_bias,
        embedding_size=raw.get("word_embed_proj_dim"),
        num_learned_positions=config.max_position,
        position_offset=2,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **with_bias("self_attn.out_proj", "attention.output", spec.output_bias),
        **with_bias("fc1", "mlp.up", spec.mlp_bias),
        **with_bias("fc2", "mlp.down", spec.mlp_bias),
    }
    for part in "qkv":
        target = Target("attention.qkv", part)
        layer |= with_bias(f"self_attn.{part}_proj", target, spec.qkv_bias)
    targets: dict[str, Targets] = {
        "model.decoder.embed_tokens.weight": Target("embedding.weight"),
        "model.decoder.embed_positions.weight": Target("positions.weight"),
        **head_targets(spec),
    }
    if spec.norm_weight:
        layer |= with_bias("self_attn_layer_norm", "attention_norm")
        layer |= with_bias("final_layer_norm", "mlp_norm")
        if spec.final_norm:
            targets |= with_bias("model.decoder.final_layer_norm", "norm")
    if spec.embedding_size not in (None, spec.hidden_size):
        targets["model.decoder.project_in.weight"] = Target("project_in.weight")
        targets["model.decoder.project_out.weight"] = Target("project_out.weight")
    targets |= layer_targets("model.decoder.layers.{}.", spec.num_layers, layer)
    return WeightMap(targets, ignored_names=tied_names(spec), optional_prefix="model.")


FAMILY = Family(("OPTForCausalLM",), build_spec, build_weight_map)
