"""CodeGen: GPT-J with its projections fused in the four groups it was trained in."""

from worker.models.config import ModelConfig
from worker.models.families import gptj
from worker.models.family import Family, WeightMap, fused, layer_targets
from worker.models.spec import ModelSpec

_NUM_GROUPS = 4


def build_spec(config: ModelConfig) -> ModelSpec:
    return gptj.build_spec(config)


def build_weight_map(spec: ModelSpec) -> WeightMap:
    weights = gptj.build_weight_map(spec)
    apart = tuple(f".attn.{part}_proj.weight" for part in "qkv")
    targets = {n: target for n, target in weights.targets.items() if not n.endswith(apart)}
    size = spec.num_heads * spec.head_dim // _NUM_GROUPS
    qkv = fused("attention.qkv.weight", {"q": size, "v": size, "k": size}, _NUM_GROUPS)
    targets |= layer_targets("transformer.h.{}.", spec.num_layers, {"attn.qkv_proj.weight": qkv})
    return WeightMap(
        targets,
        ignored_suffixes=(*weights.ignored_suffixes, ".attn.causal_mask"),
        ignored_names=weights.ignored_names,
    )


FAMILY = Family(("CodeGenForCausalLM",), build_spec, build_weight_map)
