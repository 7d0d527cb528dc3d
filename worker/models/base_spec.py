"""What every family's ModelSpec begins with: the sizes that a ModelConfig has already read.

Called by `families/llama.py` and `classic.py`, which add what their kinds of families share.
"""

from typing import Any

from worker.errors import CheckpointError
from worker.layers.activation_names import ACTIVATION_NAMES
from worker.models.config import ModelConfig
from worker.models.spec import ModelSpec


def base_spec(config: ModelConfig, activation: str, **fields: Any) -> ModelSpec:
    """`fields`: the rest of ModelSpec. Raises: CheckpointError for an unknown activation."""
    if activation not in ACTIVATION_NAMES:
        raise CheckpointError(f"{config.path}: activation {activation!r} is not supported")
    common: dict[str, Any] = {
        "windows": (None,) * config.num_layers,
        "tied_head": bool(config.raw.get("tie_word_embeddings", False)),
        **fields,
    }
    return ModelSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        activation=activation,
        **common,
    )
