"""StableLM: Llama with LayerNorm and a quarter of each head rotated; its larger form normalizes
queries and keys and computes attention and MLP side by side.
"""

from dataclasses import replace

from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    return replace(
        llama.build_spec(config),
        norm_kind="layer",
        norm_bias=True,
        norm_eps=float(raw.get("layer_norm_eps", 1e-5)),
        parallel_norms=1 if raw.get("use_parallel_residual", False) else 0,
        qk_layer_norm="apart" if raw.get("qk_layernorm", False) else None,
        qkv_bias=bool(raw.get("use_qkv_bias", False)),
        output_bias=False,
        mlp_bias=False,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {**llama.attention_targets(spec), **llama.mlp_targets(spec)}
    norms = {"input_layernorm": "attention_norm"}
    if not spec.parallel_norms:
        norms["post_attention_layernorm"] = "mlp_norm"
    for name, norm in norms.items():
        layer |= {f"{name}.{kind}": Target(f"{norm}.{kind}") for kind in ("weight", "bias")}
    if spec.qk_layer_norm is not None:
        for part, count in (("q", spec.num_heads), ("k", spec.num_kv_heads)):
            for head in range(count):
                target = Target(f"attention.qk_norm.{part}_weight", str(head))
                layer[f"self_attn.{part}_layernorm.norms.{head}.weight"] = target
    base = llama.weight_map(spec, layer)
    return replace(base, targets={**base.targets, "model.norm.bias": Target("norm.bias")})


FAMILY = Family(("StableLmForCausalLM",), build_spec, build_weight_map)
