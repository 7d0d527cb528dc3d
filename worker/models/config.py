"""A model directory's config.json and generation_config.json, read into one frozen description.

No torch here: the command line and the memory plan read a model before anything heavy is imported.
What only one family understands stays in `raw`; `families/` translates it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.errors import CheckpointError
from worker.models.dialects import common_names
from worker.models.quantization import Quantization, read_quantization

# Families spell the same things differently; the first name present counts.
_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "max_position": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What every model has, whatever its family. Immutable; the same on every rank."""

    path: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int  # tokens a sequence may have unless asked for more
    max_extended_position: int  # tokens a sequence may have at most, by RoPE scaling
    eos_token_ids: tuple[int, ...]
    torch_dtype: str  # of the checkpoint: float32 | bfloat16 | float16
    quantization: Quantization | None  # of the checkpoint's weights; they are unpacked while loaded
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary parameters in today's spelling (`rope_type`, `rope_theta`, ...)."""
        return rope_parameters(self.raw)


def load_model_config(path: str) -> ModelConfig:
    """Raises: CheckpointError when a file or a value is missing or makes no sense."""
    raw = _read_json(Path(path) / "config.json")
    generation_path = Path(path) / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.exists() else {}
    try:
        return _model_config(path, common_names(raw), generation)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}/config.json: {_explain(error)}") from error


def _model_config(path: str, raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    hidden_size, num_heads = _required(raw, "hidden_size"), _required(raw, "num_heads")
    max_position = _required(raw, "max_position")
    default, extended = _position_limits(max_position, rope_parameters(raw))
    return ModelConfig(
        path=path,
        architecture=_architecture(raw),
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=_required(raw, "num_layers"),
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(raw.get("head_dim") or hidden_size // num_heads),
        intermediate_size=int(raw.get("intermediate_size") or 4 * hidden_size),
        max_position=default,
        max_extended_position=extended,
        eos_token_ids=_eos_token_ids(raw, generation),
        torch_dtype=_dtype(raw),
        quantization=read_quantization(path, raw),
        raw=raw,
    )


def rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Merges the old spelling (`rope_scaling`, `rope_theta` beside it) into one dictionary."""
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope["rope_type"] == "su":  # the first name of longrope
        rope["rope_type"] = "longrope"
    for name, default in (("rope_theta", 10000.0), ("partial_rotary_factor", 1.0)):
        if rope.get(name) is None:
            rope[name] = raw.get(name) or default
    trained = raw.get("original_max_position_embeddings")
    if not rope.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = trained or raw.get("max_position_embeddings")
    return rope


def _position_limits(max_position: int, rope: Mapping[str, Any]) -> tuple[int, int]:
    """The length served by default and the greatest that can be asked for.

    YaRN's stretched length is meant to be used, whether or not the config counts it in already. For
    linear and dynamic scaling configs disagree on that, so the stretch has to be asked for.
    """
    factor = float(rope.get("factor") or 1.0)
    if rope["rope_type"] == "yarn":
        stretched = max(max_position, int(rope["original_max_position_embeddings"] * factor))
        return stretched, stretched
    if rope["rope_type"] in ("linear", "dynamic"):
        return max_position, max(max_position, int(max_position * factor))
    return max_position, max_position


def _architecture(raw: Mapping[str, Any]) -> str:
    architectures = raw.get("architectures") or []
    if not architectures:
        raise ValueError("no `architectures`")
    return str(architectures[0])


def _eos_token_ids(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = raw.get("eos_token_id")
    if eos is None:
        return ()
    return tuple(int(i) for i in eos) if isinstance(eos, list) else (int(eos),)


def _dtype(raw: Mapping[str, Any]) -> str:
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    return dtype


def _required(raw: Mapping[str, Any], what: str) -> int:
    for name in _ALIASES[what]:
        if raw.get(name) is not None:
            return _positive(raw, name)
    raise KeyError(_ALIASES[what][0])


def _positive(raw: Mapping[str, Any], name: str) -> int:
    value = int(raw[name])
    if value < 1:
        raise ValueError(f"`{name}` is {value}")
    return value


def _explain(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value
