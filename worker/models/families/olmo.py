"""OLMo 1: Llama with LayerNorms that have no weights, and clipped projections."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, WeightMap
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    return replace(
        llama.build_spec(config),
        norm_kind="layer",
        norm_weight=False,
        norm_eps=1e-5,
        mlp_bias=False,
        clip_qkv=config.raw.get("clip_qkv"),
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    weights = llama.build_weight_map(spec)
    targets = {n: target for n, target in weights.targets.items() if "norm" not in n}
    return replace(weights, targets=targets)


FAMILY = Family(("OlmoForCausalLM",), build_spec, build_weight_map)
