"""Qwen 1.5 and 2 MoE: Qwen2 with experts, and one shared by all tokens behind a sigmoid gate."""

from dataclasses import replace

from worker.layers.moe_spec import MoESpec
from worker.models.config import ModelConfig
from worker.models.families import llama, mixtral, qwen2
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.spec import ModelSpec

EXPERT_NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    shared_size = int(raw.get("shared_expert_intermediate_size", 5632))
    moe = replace(moe_spec(config), shared_intermediate_size=shared_size)
    # The biases are a choice in newer configs only.
    return replace(qwen2.build_spec(config), qkv_bias=bool(raw.get("qkv_bias", True)), moe=moe)


def moe_spec(config: ModelConfig) -> MoESpec:
    raw = config.raw
    every = int(raw.get("decoder_sparse_step") or 1)
    plain = set(raw.get("mlp_only_layers") or ())
    return MoESpec(
        num_experts=int(raw.get("num_experts") or raw["num_local_experts"]),
        top_k=int(raw["num_experts_per_tok"]),
        intermediate_size=int(raw["moe_intermediate_size"]),
        renormalize=bool(raw.get("norm_topk_prob", False)),
        is_sparse=tuple(
            layer not in plain and (layer + 1) % every == 0 for layer in range(config.num_layers)
        ),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    assert spec.moe is not None
    everywhere = {**llama.NORMS, **llama.attention_targets(spec)}
    base = llama.weight_map(spec, everywhere)
    targets = dict(base.targets)
    for layer, is_sparse in enumerate(spec.moe.is_sparse):
        mlp = _sparse_targets(spec.moe) if is_sparse else llama.mlp_targets(spec)
        targets |= in_layer(layer, mlp)
    return replace(base, targets=targets)


def in_layer(layer: int, targets: dict[str, Targets]) -> dict[str, Targets]:
    return {
        f"model.layers.{layer}.{name}": target.of_layer(layer)
        for name, target in targets.items()
        if isinstance(target, Target)
    }


def _sparse_targets(moe: MoESpec) -> dict[str, Targets]:
    targets: dict[str, Targets] = {
        "mlp.gate.weight": Target("mlp.router.weight"),
        **mixtral.expert_targets(moe, "mlp.experts", EXPERT_NAMES),
    }
    if moe.shared_intermediate_size:
        targets |= shared_targets("mlp.shared_expert")
        targets["mlp.shared_expert_gate.weight"] = Target("mlp.shared.gate")
    return targets


def shared_targets(prefix: str) -> dict[str, Targets]:
    return {
        f"{prefix}.gate_proj.weight": Target("mlp.shared.gate_up.weight", "gate"),
        f"{prefix}.up_proj.weight": Target("mlp.shared.gate_up.weight", "up"),
        f"{prefix}.down_proj.weight": Target("mlp.shared.down"),
    }


FAMILY = Family(("Qwen2MoeForCausalLM",), build_spec, build_weight_map)
