"""gpt-oss: attention sinks, a window in every other layer, biases everywhere, clamped experts.

The experts of the published MXFP4 form are unpacked while they are loaded.
"""

from dataclasses import replace

from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.models.config import ModelConfig
from worker.models.families import llama
from worker.models.family import Family, Target, Targets, WeightMap
from worker.models.spec import ModelSpec


def build_spec(config: ModelConfig) -> ModelSpec:
    raw = config.raw
    moe = MoESpec(
        num_experts=int(raw.get("num_local_experts") or raw["num_experts"]),
        top_k=int(raw.get("num_experts_per_tok") or raw["experts_per_token"]),
        intermediate_size=config.intermediate_size,
        renormalize=True,  # the same as its softmax of the chosen scores alone
        is_sparse=(True,) * config.num_layers,
        has_bias=True,
        swiglu=ClampedSwiGLU(
            alpha=float(raw.get("swiglu_alpha", 1.702)), limit=float(raw.get("swiglu_limit", 7.0))
        ),
    )
    kinds = raw.get("layer_types") or [
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(config.num_layers)
    ]
    window = raw.get("sliding_window", 128)
    has_bias = bool(raw.get("attention_bias", True))
    return replace(
        llama.build_spec(config),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        qkv_bias=has_bias,
        output_bias=has_bias,
        attention_sinks=True,
        moe=moe,
    )


def build_weight_map(spec: ModelSpec) -> WeightMap:
    layer: dict[str, Targets] = {
        **llama.NORMS,
        **llama.attention_targets(spec),
        "self_attn.sinks": Target("attention.sinks.weight"),
        "mlp.router.weight": Target("mlp.router.weight"),
        "mlp.router.bias": Target("mlp.router.bias"),
        **_expert_targets(spec),
    }
    return llama.weight_map(spec, layer)


def _expert_targets(spec: ModelSpec) -> dict[str, Targets]:
    """Each tensor has all experts, of every one a matrix [in, out] or a bias."""
    assert spec.moe is not None
    parameters = {
        "gate_up_proj": "gate_up",
        "gate_up_proj_bias": "gate_up_bias",
        "down_proj": "down",
        "down_proj_bias": "down_bias",
    }
    return {
        f"mlp.experts.{name}": tuple(
            Target(f"mlp.experts.{parameter}", is_transposed=True, expert=expert, is_stacked=True)
            for expert in range(spec.moe.num_experts)
        )
        for name, parameter in parameters.items()
    }


FAMILY = Family(("GptOssForCausalLM",), build_spec, build_weight_map)
