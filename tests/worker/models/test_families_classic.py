"""Families of LayerNorm decoders against transformers, in their published forms made tiny."""

from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.family_parity import assert_parity
from tests.worker.models.harness import TINY

GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
BLOOM = {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}
MPT = {"vocab_size": 99, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}
SHAPE = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
OPT = {**SHAPE, "ffn_dim": 44, "pad_token_id": None}
FALCON = {**SHAPE, "ffn_hidden_size": 44}

# name: (transformers' class, its options, numbers of ranks)
ROWS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "MPT": ("MptForCausalLM", MPT, (1, 2, 4)),
    "MPT, heads no power of two": (
        "MptForCausalLM",
        {**MPT, "d_model": 36, "n_heads": 6},
        (1, 2, 3),
    ),
    "MPT, clipped and scaled": (
        "MptForCausalLM",
        {**MPT, "attn_config": {"clip_qkv": 0.8, "softmax_scale": 0.2}},
        (1, 2),
    ),
    "GPT-2": ("GPT2LMHeadModel", GPT, (1, 2, 4)),
    "GPT-2, own width, unscaled": (
        "GPT2LMHeadModel",
        {**GPT, "n_inner": 44, "activation_function": "relu", "scale_attn_weights": False},
        (1, 2),
    ),
    "OPT": ("OPTForCausalLM", OPT, (1, 2, 4)),
    "OPT 350m": (
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
        (1, 2),
    ),
    "OPT without affine norms": (
        "OPTForCausalLM",
        {**OPT, "layer_norm_elementwise_affine": False, "enable_bias": False},
        (1, 2),
    ),
    "GPT-NeoX": (
        "GPTNeoXForCausalLM",
        {**SHAPE, "rotary_pct": 0.25, "rotary_emb_base": 5000},
        (1, 2, 4),
    ),
    "GPT-NeoX, sequential": (
        "GPTNeoXForCausalLM",
        {**SHAPE, "use_parallel_residual": False, "attention_bias": False},
        (1, 2),
    ),
    "GPT-J": ("GPTJForCausalLM", {**GPT, "rotary_dim": 4}, (1, 2, 4)),
    "Bloom": ("BloomForCausalLM", BLOOM, (1, 2, 4)),
    "Bloom, heads no power of two": (
        "BloomForCausalLM",
        {**BLOOM, "hidden_size": 36, "n_head": 6},
        (1, 2),
    ),
    "Falcon 7B": ("FalconForCausalLM", FALCON, (1, 2, 4)),
    "Falcon 40B": (
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        (1, 2, 4),
    ),
    "Falcon 11B": (
        "FalconForCausalLM",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
        (1, 2),
    ),
    "Falcon RW": (
        "FalconForCausalLM",
        {
            **FALCON,
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
            "attn_implementation": "sdpa",  # transformers' eager attention adds ALiBi twice
        },
        (1, 2, 4),
    ),
    "Phi": ("PhiForCausalLM", {**SHAPE, "partial_rotary_factor": 0.5}, (1, 2, 4)),
    "Phi with normed queries": (
        "PhiForCausalLM",
        {**TINY, "qk_layernorm": True, "partial_rotary_factor": 0.5},
        (1, 2),
    ),
    "StarCoder2": ("Starcoder2ForCausalLM", {**TINY, "sliding_window": 21}, (1, 2, 4)),
    "StarCoder2 without biases": (
        "Starcoder2ForCausalLM",
        {**TINY, "use_bias": False, "tie_word_embeddings": False},
        (1, 2),
    ),
    "StarCoder": ("GPTBigCodeForCausalLM", GPT, (1, 2, 4)),
    "StarCoder, a KV head per head": (
        "GPTBigCodeForCausalLM",
        {**GPT, "multi_query": False},
        (1, 2),
    ),
    "Cohere": ("CohereForCausalLM", {**TINY, "pad_token_id": 0}, (1, 2, 4)),
    "Cohere with normed queries": (
        "CohereForCausalLM",
        {**TINY, "pad_token_id": 0, "use_qk_norm": True, "logit_scale": 0.3},
        (1, 2, 4),
    ),
}
ROWS |= {
    "Cohere 2": (
        "Cohere2ForCausalLM",
        {**TINY, "pad_token_id": 0, "sliding_window": 21, "num_hidden_layers": 4},
        (1, 2, 4),
    ),
    "CodeGen": (
        "CodeGenForCausalLM",
        {**GPT, "n_embd": 48, "n_head": 8, "rotary_dim": 4},
        (1, 2, 4),
    ),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        {
            **SHAPE,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 21,
        },
        (1, 2, 4),
    ),
    "OLMo": ("OlmoForCausalLM", {**TINY, "clip_qkv": 0.8, "pad_token_id": 0}, (1, 2, 4)),
}
CONFIGS = {"GPT2LMHeadModel": "GPT2Config"}


def make_config(architecture: str, options: dict[str, Any]) -> Any:
    import transformers

    config_name = CONFIGS.get(architecture, architecture.replace("ForCausalLM", "Config"))
    config_class = getattr(transformers, config_name)
    return config_class(architectures=[architecture], bos_token_id=0, eos_token_id=1, **options)


@pytest.mark.parametrize("row", ROWS)
def test_family_matches_transformers(tmp_path: Path, row: str) -> None:
    architecture, options, tp_sizes = ROWS[row]
    assert_parity(tmp_path, make_config(architecture, options), tp_sizes)
