"""DeepSeek V2 and V3 (R1): latent attention, experts in groups, some of them shared by all tokens.

The two differ in how a token's experts are chosen. The published V3 is of scaled FP8, which is
unpacked while it is loaded.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from worker.errors import CheckpointError
from worker.layers.mla_spec import MLASpec
from worker.layers.moe_spec import MoESpec
from worker.models.config import ModelConfig
from worker.models.families import llama, mixtral, qwen2_moe
from worker.models.family import Family, Rows, Target, Targets, WeightMap
from worker.models.rope import rope_spec
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    if raw.get("attention_bias", False):
        raise CheckpointError(f"{config.path}: latent attention with biases is not supported")
    mla = MLASpec(
        q_rank=raw.get("q_lora_rank"),
        kv_rank=int(raw["kv_lora_rank"]),
        nope_dim=int(raw["qk_nope_head_dim"]),
        rope_dim=int(raw["qk_rope_head_dim"]),
        v_dim=int(raw["v_head_dim"]),
    )
    rope = rope_spec(replace(config, head_dim=mla.rope_dim))
    scale = (mla.nope_dim + mla.rope_dim) ** -0.5
    if rope.kind != "default" and rope.mscale_all_dim and rope.factor > 1:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
    return replace(
        llama.build_spec(config),
        rope=replace(rope, is_interleaved=bool(raw.get("rope_interleave", True))),
        attention_scale=scale,
        mla=mla,
        moe=moe_spec(config, is_v3=config.architecture == "DeepseekV3ForCausalLM"),
    )


def moe_spec(config: ModelConfig, is_v3: bool) -> MoESpec:
    raw = config.raw
    size = int(raw["moe_intermediate_size"])
    first_sparse = int(raw.get("first_k_dense_replace") or 0)
    is_grouped = is_v3 or raw.get("topk_method", "greedy") == "group_limited_greedy"
    return MoESpec(
        num_experts=int(raw.get("n_routed_experts") or raw["num_local_experts"]),
        top_k=int(raw["num_experts_per_tok"]),
        intermediate_size=size,
        renormalize=is_v3 and bool(raw.get("norm_topk_prob", True)),
        is_sparse=tuple(layer >= first_sparse for layer in range(config.num_layers)),
        shared_intermediate_size=size * int(raw.get("n_shared_experts") or 0),
        is_shared_gated=False,
        is_sigmoid=is_v3,
        has_choice_bias=is_v3,
        num_groups=int(raw.get("n_group") or 1) if is_grouped else 1,
        top_groups=int(raw.get("topk_group") or 1) if is_grouped else 1,
        best_of_group=2 if is_v3 else 1,
        weight_scale=float(raw.get("routed_scaling_factor", 1.0)),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    return weight_map(spec, _attention_targets(spec))


def weight_map(spec: ModelSpec, attention: Mapping[str, Targets]) -> WeightMap:
    assert spec.moe is not None
    base = llama.weight_map(spec, {**llama.NORMS, **attention})
    targets = dict(base.targets)
    for layer, is_sparse in enumerate(spec.moe.is_sparse):
        mlp = _sparse_targets(spec.moe) if is_sparse else llama.mlp_targets(spec)
        targets |= qwen2_moe.in_layer(layer, mlp)
    # Behind the last layer, V3 has one that drafts further tokens.
    return replace(base, targets=targets, ignored_prefixes=(f"model.layers.{spec.num_layers}.",))


def _attention_targets(spec: ModelSpec) -> dict[str, Targets]:
    mla = spec.mla
    assert mla is not None
    size = mla.nope_dim + mla.v_dim  # of a head: its keys' rows, then its values'
    k_rows = Rows(spec.num_heads, size, 0, mla.nope_dim)
    v_rows = Rows(spec.num_heads, size, mla.nope_dim, mla.v_dim)
    targets: dict[str, Targets] = {
        "self_attn.kv_a_proj_with_mqa.weight": Target("attention.kv_down.weight"),
        "self_attn.kv_a_layernorm.weight": Target("attention.kv_norm.weight"),
        "self_attn.kv_b_proj.weight": (
            Target("attention.k_up.weight", rows=k_rows),
            Target("attention.v_up.weight", rows=v_rows),
        ),
        "self_attn.o_proj.weight": Target("attention.output.weight"),
    }
    if mla.q_rank is None:
        return targets | {"self_attn.q_proj.weight": Target("attention.q.weight")}
    return targets | {
        "self_attn.q_a_proj.weight": Target("attention.q_down.weight"),
        "self_attn.q_a_layernorm.weight": Target("attention.q_norm.weight"),
        "self_attn.q_b_proj.weight": Target("attention.q.weight"),
    }


def _sparse_targets(moe: MoESpec) -> dict[str, Targets]:
    targets: dict[str, Targets] = {
        "mlp.gate.weight": Target("mlp.router.weight"),
        **mixtral.expert_targets(moe, "mlp.experts", qwen2_moe.EXPERT_NAMES),
    }
    if moe.has_choice_bias:
        targets["mlp.gate.e_score_correction_bias"] = Target("mlp.router.choice_bias")
    if moe.shared_intermediate_size:
        targets |= qwen2_moe.shared_targets("mlp.shared_experts")
    return targets


FAMILY = Family(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), build_spec, build_weight_map)
