"""Logits equal transformers' on random tiny models, within 1e-4, over every path of a plan."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.models.harness import (
    TINY,
    driver_for,
    llama_config,
    make_checkpoint,
    make_runner,
    random_tokens,
    reference_logits,
)

TOLERANCE = 1e-4

LONG_FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 8.0]}

LLAMA_VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one kv head": {"num_key_value_heads": 1},
    "a kv head per head": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "own head_dim": {"head_dim": 20},
    "gelu": {"hidden_act": "gelu"},
}

ROPE_VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    },
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
        **LONG_FACTORS,
    },
}


def assert_all_paths_match(model: Any, path: Path, num_tokens: int = 90, **runner: Any) -> None:
    """Whole prompt, chunks, a cached prefix, decodes in a batch, and a mixture of them."""
    runner_ = make_runner(path, **runner)
    driver = driver_for(runner_)
    texts = {slot: random_tokens(num_tokens - 7 * slot, seed=slot) for slot in range(4)}
    texts[3] = texts[0][:32] + texts[3]  # shares eight blocks with slot 0
    expected = {slot: reference_logits(model, text) for slot, text in texts.items()}
    prompts = {slot: text[: len(text) - 6] for slot, text in texts.items()}

    def check(*counts: tuple[int, int]) -> None:
        logits = runner_.compute_logits(driver.plan(*counts))
        ended = [s for s, _ in counts if driver.computed[s] == len(driver.tokens[s])]
        assert logits.shape == (len(ended), expected[0].shape[1])
        for row, slot in zip(logits, ended, strict=True):
            difference = (row - expected[slot][driver.computed[slot] - 1]).abs().max()
            assert difference < TOLERANCE, f"slot {slot}: {difference}"

    driver.admit(0, prompts[0])
    check((0, len(prompts[0])))  # a whole prompt
    driver.admit(1, prompts[1])
    driver.tokens[0].append(texts[0][len(prompts[0])])
    check((0, 1), (1, 33))  # a decode beside a first chunk
    check((1, len(prompts[1]) - 33))  # a later chunk
    driver.admit(2, prompts[2])
    driver.admit(3, prompts[3], cached_from=0, num_cached=32)
    driver.tokens[1].append(texts[1][len(prompts[1])])
    check((2, len(prompts[2])), (1, 1), (3, len(prompts[3]) - 32))  # mixed, with a cached prefix
    while len(driver.tokens[3]) < len(texts[3]):
        growing = [s for s in range(4) if len(driver.tokens[s]) < len(texts[s])]
        for slot in growing:
            driver.tokens[slot].append(texts[slot][len(driver.tokens[slot])])
        check(*((slot, 1) for slot in growing))  # a batch of decodes


@pytest.mark.parametrize("variant", LLAMA_VARIANTS)
def test_llama_matches_transformers(tmp_path: Path, variant: str) -> None:
    model = make_checkpoint(tmp_path, llama_config(**LLAMA_VARIANTS[variant]))
    assert_all_paths_match(model, tmp_path)


@pytest.mark.parametrize("variant", ROPE_VARIANTS)
def test_rope_scaling_matches_transformers(tmp_path: Path, variant: str) -> None:
    config = llama_config(rope_parameters=dict(ROPE_VARIANTS[variant]))
    model = make_checkpoint(tmp_path, config)
    is_short = (
        variant == "longrope"
    )  # transformers switches factors at 64 tokens, a deployment cannot
    longest = {"num_tokens": 50, "max_model_len": 64} if is_short else {}
    assert_all_paths_match(model, tmp_path, **longest)


def test_longrope_deployed_beyond_trained_length_uses_long_factors(tmp_path: Path) -> None:
    config = llama_config(rope_parameters=dict(ROPE_VARIANTS["longrope"]))
    model = make_checkpoint(tmp_path, config)
    assert_last_logits_match(model, tmp_path, num_tokens=100)


def test_dynamic_scaling_at_configured_length_matches_transformers(tmp_path: Path) -> None:
    config = llama_config(rope_parameters=dict(ROPE_VARIANTS["dynamic"]))
    model = make_checkpoint(tmp_path, config)
    assert_last_logits_match(model, tmp_path, num_tokens=600, max_model_len=600)


def assert_last_logits_match(model: Any, path: Path, num_tokens: int, **runner: Any) -> None:
    """In chunks, so that early keys were computed when the sequence was still short."""
    runner_ = make_runner(path, **runner)
    driver = driver_for(runner_)
    text = random_tokens(num_tokens, seed=3)
    driver.admit(0, text)
    assert len(runner_.compute_logits(driver.plan((0, 41)))) == 0
    logits = runner_.compute_logits(driver.plan((0, num_tokens - 41)))
    assert (logits[0] - reference_logits(model, text)[-1]).abs().max() < TOLERANCE


def test_mistral_with_sliding_window_matches_transformers(tmp_path: Path) -> None:
    from transformers import MistralConfig

    config = MistralConfig(
        **TINY, architectures=["MistralForCausalLM"], sliding_window=21, head_dim=12
    )
    assert_all_paths_match(make_checkpoint(tmp_path, config), tmp_path)


def test_qwen2_matches_transformers(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(**TINY, architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True)
    assert_all_paths_match(make_checkpoint(tmp_path, config), tmp_path)


def test_qwen2_with_window_in_later_layers_matches_transformers(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(
        **TINY,
        architectures=["Qwen2ForCausalLM"],
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    )
    assert_all_paths_match(make_checkpoint(tmp_path, config), tmp_path)


def test_qwen3_matches_transformers(tmp_path: Path) -> None:
    from transformers import Qwen3Config

    config = Qwen3Config(**TINY, architectures=["Qwen3ForCausalLM"], head_dim=16)
    assert_all_paths_match(make_checkpoint(tmp_path, config), tmp_path)


@pytest.mark.parametrize("backend", ["gathered", "reference"])
def test_backends_serve_the_same_model(tmp_path: Path, backend: str) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    assert_all_paths_match(model, tmp_path, num_tokens=60, attention_backend=backend)


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path, dtype="bfloat16")
    driver = driver_for(runner)
    text = random_tokens(30, seed=5)
    driver.admit(0, text)
    logits = runner.compute_logits(driver.plan((0, 30)))
    expected = reference_logits(model, text)[-1]
    assert torch.nn.functional.cosine_similarity(logits[0], expected, dim=0) > 0.999
