"""Mixtral: Mistral with experts in every layer. The maps of other mixtures are made with it."""

from collections.abc import Mapping
from dataclasses import replace

from worker.layers.moe_spec import MoESpec
from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.spec import ModelSpec

EXPERT_NAMES = {"gate": "w1", "down": "w2", "up": "w3"}


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    moe = MoESpec(
        num_experts=int(raw.get("num_local_experts", 8)),
        top_k=int(raw.get("num_experts_per_tok", 2)),
        intermediate_size=config.intermediate_size,
        renormalize=True,
        is_sparse=(True,) * config.num_layers,
    )
    window = raw.get("sliding_window")
    spec = llama.build_spec(config)
    return replace(spec, moe=moe, windows=(window,) * config.num_layers)


def build_weight_map(spec: ModelSpec) -> WeightMap:
    assert spec.moe is not None
    moe = {
        "block_sparse_moe.gate.weight": Target("mlp.router.weight"),
        **expert_targets(spec.moe, "block_sparse_moe.experts", EXPERT_NAMES),
    }
    return llama.weight_map(spec, {**llama.NORMS, **llama.attention_targets(spec), **moe})


def expert_targets(moe: MoESpec, prefix: str, names: Mapping[str, str]) -> dict[str, Targets]:
    """Of a layer whose checkpoint has three matrices for each expert."""
    places = {"gate": ("gate_up", "gate"), "up": ("gate_up", "up"), "down": ("down", "")}
    return {
        f"{prefix}.{expert}.{names[which]}.weight": Target(
            f"mlp.experts.{parameter}", part, expert=expert
        )
        for expert in range(moe.num_experts)
        for which, (parameter, part) in places.items()
    }


FAMILY = Family(("MixtralForCausalLM",), build_spec, build_weight_map)
