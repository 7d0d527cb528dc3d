"""OLMoE: many small experts; norms before sub-layers, and across all queries and keys as OLMo 2."""

from dataclasses import replace

from worker.errors import CheckpointError
from worker.layers.moe_spec import MoESpec
from worker.models.config import ModelConfig
from worker.models.families import llama, qwen2_moe
from worker.models.family import Family
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    if raw.get("clip_qkv") is not None:
        raise CheckpointError(f"{config.path}: clip_qkv is not supported with norms of queries")
    moe = MoESpec(
        num_experts=int(raw.get("num_experts", 64)),
        top_k=int(raw.get("num_experts_per_tok", 8)),
        intermediate_size=config.intermediate_size,
        renormalize=bool(raw.get("norm_topk_prob", False)),
        is_sparse=(True,) * config.num_layers,
    )
    return replace(
        llama.build_spec(config),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        qk_norm=True,
        wide_qk_norm=True,
        moe=moe,
    )


FAMILY = Family(("OlmoeForCausalLM",), build_spec, qwen2_moe.build_weight_map)
