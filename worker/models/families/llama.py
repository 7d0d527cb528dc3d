"""Llama 1 to 3 and all that share its checkpoint layout (TinyLlama, SmolLM2, Yi, Falcon3 ...).

Its functions are the base of the families that differ from it in a few fields.
"""

from collections.abc import Mapping

from worker.models.base_spec import base_spec
from worker.models.config import ModelConfig
from worker.models.family import Family, Target, Targets, WeightMap, layer_targets
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec

NORMS: Mapping[str, Targets] = {
    "input_layernorm.weight": Target("attention_norm.weight"),
    "post_attention_layernorm.weight": Target("mlp_norm.weight"),
}


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    has_bias = bool(raw.get("attention_bias", False))
    return base_spec(
        config,
        str(raw.get("hidden_act", "silu")),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=rope_spec(config),
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    return weight_map(spec, {**NORMS, **attention_targets(spec), **mlp_targets(spec)})


def weight_map(spec: ModelSpec, in_every_layer: Mapping[str, Targets]) -> WeightMap:
    """Of Llama's names, but for those within a layer."""
    targets: dict[str, Targets] = {
        "model.embed_tokens.weight": Target("embedding.weight"),
        "model.norm.weight": Target("norm.weight"),
    }
    if not spec.tied_head:
        targets["lm_head.weight"] = Target("lm_head.weight")
    targets |= layer_targets("model.layers.{}.", spec.num_layers, in_every_layer)
    return WeightMap(
        targets,
        # Buffers that old versions of transformers saved, and the copy of a tied head.
        ignored_suffixes=("rotary_emb.inv_freq",),
        ignored_names=frozenset({"lm_head.weight"} if spec.tied_head else ()),
    )


def attention_targets(spec: ModelSpec) -> dict[str, Targets]:
    targets: dict[str, Targets] = {}
    if spec.qk_norm:
        targets["self_attn.q_norm.weight"] = Target("attention.qk_norm.q_weight")
        targets["self_attn.k_norm.weight"] = Target("attention.qk_norm.k_weight")
    for kind in ("weight", "bias"):
        if kind == "weight" or spec.qkv_bias:
            for part in "qkv":
                targets[f"self_attn.{part}_proj.{kind}"] = Target(f"attention.qkv.{kind}", part)
        if kind == "weight" or spec.output_bias:
            targets[f"self_attn.o_proj.{kind}"] = Target(f"attention.output.{kind}")
    return targets


def mlp_targets(spec: ModelSpec) -> dict[str, Targets]:
    targets: dict[str, Targets] = {}
    for kind in ("weight", "bias"):
        if kind == "weight" or spec.mlp_bias:
            for part in ("gate", "up"):
                targets[f"mlp.{part}_proj.{kind}"] = Target(f"mlp.gate_up.{kind}", part)
            targets[f"mlp.down_proj.{kind}"] = Target(f"mlp.down.{kind}")
    return targets


FAMILY = Family(("LlamaForCausalLM",), build_spec, build_weight_map)
