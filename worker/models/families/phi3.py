"""Phi-3, 3.5 and 4: Llama with fused projections, long-context RoPE and a window."""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, Target, Targets, WeightMap, fused
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    return replace(
        llama.build_spec(config),
        windows=(config.raw.get("sliding_window"),) * config.num_layers,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer: dict[str, Targets] = {
        **llama.NORMS,
        "self_attn.qkv_proj.weight": fused("attention.qkv.weight", {"q": q, "k": kv, "v": kv}),
        "self_attn.o_proj.weight": Target("attention.output.weight"),
        **mlp_targets(spec),
    }
    return llama.weight_map(spec, layer)


def mlp_targets(spec: ModelSpec) -> dict[str, Targets]:
    sizes = {"gate": spec.intermediate_size, "up": spec.intermediate_size}
    return {
        "mlp.gate_up_proj.weight": fused("mlp.gate_up.weight", sizes),
        "mlp.down_proj.weight": Target("mlp.down.weight"),
    }


FAMILY = Family(("Phi3ForCausalLM",), build_spec, build_weight_map)
