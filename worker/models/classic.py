"""What the families before Llama share: LayerNorm with bias, a plain MLP, biases everywhere.

Each of them states where it differs. Also ALiBi's slopes and short ways to write down targets.
"""

import math
from dataclasses import replace
from typing import Any

from worker.errors import CheckpointError
from worker.models.base_spec import base_spec
from worker.models.config import ModelConfig
from worker.models.family import Target, Targets
from worker.models.spec import ModelSpec


def classic_spec(config: ModelConfig, activation: str, **differences: Any) -> ModelSpec:
    """Raises: CheckpointError for an unknown activation."""
    fields: dict[str, Any] = {
        "norm_eps": float(config.raw.get("layer_norm_epsilon") or 1e-5),
        "rope": None,
        "norm_kind": "layer",
        "norm_bias": True,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "is_gated": False,
        **differences,
    }
    return base_spec(config, activation, **fields)


def unsupported(config: ModelConfig, option: str, value: object) -> CheckpointError:
    """An error for an option of a family that no published model needs."""
    return CheckpointError(f"{config.path}: {option}={value!r} is not supported")


def alibi_slopes(num_heads: int, bias_max: float = 8.0) -> tuple[float, ...]:
    """One per head (Press et al. 2022): a geometric series down to 2 ** -bias_max.

    For a number of heads that is no power of two: of the next power's series every second slope,
    then the ones between, as far as there are heads.
    """
    count = 2 ** math.ceil(math.log2(num_heads))
    series = [2.0 ** (-bias_max * i / count) for i in range(1, count + 1)]
    if count == num_heads:
        return tuple(series)
    return tuple((series[1::2] + series[::2])[:num_heads])


def with_bias(name: str, targets: Targets | str, has_bias: bool = True) -> dict[str, Targets]:
    """Targets of `name.weight` and `name.bias`; `targets` name the layer alone."""
    if isinstance(targets, str):
        targets = Target(targets)
    kinds = ("weight", "bias") if has_bias else ("weight",)
    return {f"{name}.{kind}": _of_kind(targets, kind) for kind in kinds}


def _of_kind(targets: Targets, kind: str) -> Targets:
    if isinstance(targets, Target):
        return replace(targets, parameter=f"{targets.parameter}.{kind}")
    return tuple(replace(one, parameter=f"{one.parameter}.{kind}") for one in targets)


def fused_qkv(spec: ModelSpec) -> dict[str, int]:
    """Parts of a projection that has all queries, then all keys, then all values."""
    kv_size = spec.num_kv_heads * spec.head_dim
    return {"q": spec.num_heads * spec.head_dim, "k": kv_size, "v": kv_size}


def grouped_qkv(spec: ModelSpec) -> dict[str, int]:
    """Parts of each group of a projection with the queries of each KV head, its key, its value."""
    heads_per_group = spec.num_heads // spec.num_kv_heads
    return {"q": heads_per_group * spec.head_dim, "k": spec.head_dim, "v": spec.head_dim}


def head_targets(spec: ModelSpec, name: str = "lm_head") -> dict[str, Targets]:
    if spec.tied_head:
        return {}
    return with_bias(name, "lm_head", spec.head_bias)


def tied_names(spec: ModelSpec, name: str = "lm_head.weight") -> frozenset[str]:
    """The copy of a tied head, which some checkpoints hold as well."""
    return frozenset({name} if spec.tied_head else ())
