"""Families of RMSNorm decoders against transformers, in their published forms made tiny."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.family_parity import (
    assert_checkpoint_parity,
    assert_parity,
    bfloat16_similarity,
)
from tests.worker.models.harness import TINY, make_checkpoint
from worker.models.config import load_model_config
from worker.models.registry import find_family

SLIDING = ["sliding_attention", "full_attention"]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
}
# name: (transformers' config class, what differs from TINY)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma": ("GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1}),
    "Gemma 2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": 21,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "Gemma 3": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 21,
            "num_hidden_layers": 3,
            "layer_types": [*SLIDING, "sliding_attention"],
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "Phi-3": ("Phi3Config", {"sliding_window": 21, "pad_token_id": 0}),
    "Phi-4 mini": (
        "Phi3Config",
        {
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                **LONGROPE,
                "original_max_position_embeddings": 256,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "OLMo 2": ("Olmo2Config", {}),
    "OLMo 2, one KV head": ("Olmo2Config", {"num_key_value_heads": 1}),
    "OLMo 3": (
        "Olmo3Config",
        {
            "sliding_window": 21,
            "layer_types": SLIDING,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 5e5,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "Granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "SmolLM3": ("SmolLM3Config", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "GLM-4": ("GlmConfig", {"head_dim": 16, "pad_token_id": 0}),
    "GLM-4-0414": ("Glm4Config", {"head_dim": 16, "pad_token_id": 0}),
    "StableLM": ("StableLmConfig", {"use_qkv_bias": True}),
    "StableLM 2 12B": ("StableLmConfig", {"use_parallel_residual": True, "qk_layernorm": True}),
}
ARCHITECTURES = {
    "Gemma3TextConfig": "Gemma3ForCausalLM",
    "StableLmConfig": "StableLmForCausalLM",
}


def make_config(row: str) -> Any:
    import transformers

    name, options = ROWS[row]
    architecture = ARCHITECTURES.get(name, name.replace("Config", "ForCausalLM"))
    return getattr(transformers, name)(
        **{**TINY, "architectures": [architecture], "eos_token_id": 1, **options}
    )


@pytest.mark.parametrize("row", ROWS)
def test_family_matches_transformers(tmp_path: Path, row: str) -> None:
    assert_parity(tmp_path, make_config(row), tp_sizes=(1, 2, 4))


@pytest.mark.parametrize("row", ["Gemma 2", "Gemma 3", "OLMo 2", "StableLM 2 12B"])
def test_bfloat16_stays_close_to_float32(tmp_path: Path, row: str) -> None:
    assert bfloat16_similarity(tmp_path, make_config(row)) > 0.998


def test_text_part_of_gemma_3_that_sees_matches_transformers(tmp_path: Path) -> None:
    from transformers import Gemma3Config

    vision = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config={**TINY, **ROWS["Gemma 3"][1], "eos_token_id": 1},
        vision_config=vision,
        mm_tokens_per_image=4,
        architectures=["Gemma3ForConditionalGeneration"],
    )
    model = make_checkpoint(tmp_path, config)
    model.config.vocab_size = TINY["vocab_size"]
    assert_checkpoint_parity(tmp_path, model, (1, 2))


def test_published_config_of_a_gemma_3_that_sees_is_completed(tmp_path: Path) -> None:
    """The 4B's leaves out the vocabulary and the heads."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    model = load_model_config(str(tmp_path))
    assert (model.vocab_size, model.num_heads, model.num_kv_heads) == (262208, 8, 4)
    assert (model.head_dim, model.max_position, model.torch_dtype) == (256, 131072, "bfloat16")
    spec = find_family(model).build_spec(model)
    assert spec.windows[:7] == (1024, 1024, 1024, 1024, 1024, None, 1024)
    local, full = spec.layer_ropes[0], spec.layer_ropes[5]
    assert local is not None and full is not None
    assert (local.theta, local.kind) == (10_000.0, "default")
    assert (full.theta, full.kind, full.factor) == (1_000_000.0, "linear", 8.0)
