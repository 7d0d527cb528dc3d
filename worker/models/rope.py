"""From a config's rotary parameters to a RopeSpec: shared by all families with rotary encoding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from worker.errors import CheckpointError
from worker.layers.rope_spec import RopeKind, RopeSpec
from worker.models.config import ModelConfig


def rope_spec_of_kind(config: ModelConfig, kind: str, theta: float) -> RopeSpec:
    """Of one kind of layers (an entry of `layer_types`) where kinds have encodings of their own.

    Today's configs have parameters for each kind. Older ones have one `rope_scaling`, for the
    layers that see everything, and a base that only the family can tell: `theta`.
    """
    raw = dict(config.raw)
    by_kind = raw.pop("rope_parameters", None)
    if by_kind is not None:
        scaling = dict(by_kind.get(kind) or {})
    else:
        scaling = dict(raw.get("rope_scaling") or {}) if kind == "full_attention" else {}
        theta = float(raw.get("rope_theta") or theta) if kind == "full_attention" else theta
    scaling["rope_theta"] = scaling.get("rope_theta") or theta
    return rope_spec(replace(config, raw={**raw, "rope_parameters": scaling}))


def rope_spec(config: ModelConfig) -> RopeSpec:
    """Raises: CheckpointError for an unknown kind or a missing parameter."""
    rope = config.rope
    kind = rope["rope_type"]
    if kind not in get_args(RopeKind):
        raise CheckpointError(f"{config.path}: RoPE scaling {kind!r} is not supported")
    try:
        spec = _plain_spec(config, rope)
        scaled = _with_scaling(spec, rope)
    except KeyError as error:
        raise CheckpointError(f"{config.path}: RoPE scaling {kind!r} lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config.path}: RoPE scaling {kind!r}: {error}") from error
    return scaled


def _plain_spec(config: ModelConfig, rope: Mapping[str, Any]) -> RopeSpec:
    return RopeSpec(
        theta=float(rope["rope_theta"]),
        rotary_dim=int(config.head_dim * float(rope["partial_rotary_factor"])),
        kind=rope["rope_type"],
        max_position=int(config.raw["max_position_embeddings"]),
        original_max_position=int(rope["original_max_position_embeddings"]),
    )


def _with_scaling(spec: RopeSpec, rope: Mapping[str, Any]) -> RopeSpec:
    match spec.kind:
        case "default":
            return spec
        case "linear" | "dynamic":
            return replace(spec, factor=float(rope["factor"]))
        case "llama3":
            return replace(
                spec,
                factor=float(rope["factor"]),
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
            )
        case "yarn":
            return _yarn(spec, rope)
        case "longrope":
            return _longrope(spec, rope)


def _yarn(spec: RopeSpec, rope: Mapping[str, Any]) -> RopeSpec:
    return replace(
        spec,
        factor=_stretch(spec, rope),
        attention_factor=_optional(rope, "attention_factor"),
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        mscale=float(rope.get("mscale") or 0),
        mscale_all_dim=float(rope.get("mscale_all_dim") or 0),
        truncate=bool(rope.get("truncate", True)),
    )


def _longrope(spec: RopeSpec, rope: Mapping[str, Any]) -> RopeSpec:
    num_frequencies = spec.rotary_dim // 2
    factors = {name: tuple(map(float, rope[name])) for name in ("short_factor", "long_factor")}
    for name, values in factors.items():
        if len(values) != num_frequencies:
            raise ValueError(f"{name} has {len(values)} values, not {num_frequencies}")
    return replace(
        spec,
        factor=_stretch(spec, rope),
        attention_factor=_optional(rope, "attention_factor"),
        short_factor=factors["short_factor"],
        long_factor=factors["long_factor"],
    )


def _stretch(spec: RopeSpec, rope: Mapping[str, Any]) -> float:
    return float(rope.get("factor") or spec.max_position / spec.original_max_position)


def _optional(rope: Mapping[str, Any], name: str) -> float | None:
    return None if rope.get(name) is None else float(rope[name])
