"""Llama and its nearest kin against transformers: the rows of the parity table that need no special
parts. Their variants (RoPE scalings, biases, heads) are in test_parity.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.family_parity import assert_parity
from tests.worker.models.harness import TINY

# architecture: (transformers' config class, what differs from TINY)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "MistralForCausalLM": ("MistralConfig", {"sliding_window": 21, "head_dim": 12}),
    "Qwen2ForCausalLM": ("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("Qwen3Config", {"head_dim": 16}),
}


@pytest.mark.parametrize("row", ROWS)
def test_row_matches_transformers(tmp_path: Path, row: str) -> None:
    import transformers

    name, options = ROWS[row]
    config = getattr(transformers, name)(**{**TINY, "architectures": [row], **options})
    assert_parity(tmp_path, config, (1, 2, 4))
