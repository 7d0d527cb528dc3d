"""Models whose every layer has a window, through the engine: a cache smaller than the sequences."""

from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.harness import TINY, make_checkpoint, make_runner, random_tokens
from tests.worker.models.served import assert_greedy, make_engine, run_engine
from worker.errors import MemoryPlanError

WINDOW = 21


def mistral_config(**overrides: Any) -> Any:
    from transformers import MistralConfig

    settings = {**TINY, "sliding_window": WINDOW, "head_dim": 12, **overrides}
    return MistralConfig(**settings, architectures=["MistralForCausalLM"])


def starcoder2_config() -> Any:
    from transformers import Starcoder2Config

    settings = {**TINY, "sliding_window": WINDOW, "bos_token_id": 1, "eos_token_id": 1}
    return Starcoder2Config(**settings, architectures=["Starcoder2ForCausalLM"])


@pytest.mark.parametrize("make_config", [mistral_config, starcoder2_config])
def test_sequences_longer_than_the_cache_match_transformers(
    tmp_path: Path, make_config: Any
) -> None:
    model = make_checkpoint(tmp_path, make_config())
    runner = make_runner(tmp_path, num_blocks=18)  # 72 tokens for three sequences of up to 200
    assert runner.max_model_len == 256
    prompts = {1: random_tokens(150, seed=1), 2: random_tokens(9, seed=2)}
    prompts[3] = prompts[1][:120] + random_tokens(11, seed=3)
    tokens = run_engine(make_engine(runner, 18, budget=32), prompts, max_tokens=50)
    for handle, prompt in prompts.items():
        assert len(tokens[handle]) == 50
        assert_greedy(model, prompt, tokens[handle])


def test_length_that_was_asked_for_needs_the_blocks_of_a_window_only(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, mistral_config())
    plan = make_runner(tmp_path, num_blocks=7, max_model_len=256).memory_plan
    assert plan.max_model_len == 256 and plan.groups.windows == (WINDOW,)
    assert "keep the last 21" in "\n".join(plan.describe())
    with pytest.raises(MemoryPlanError, match="less than one sequence of 256 tokens"):
        make_runner(tmp_path, num_blocks=6, max_model_len=256)


def test_cpu_cache_holds_windows_and_not_whole_sequences(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, mistral_config())
    plan = make_runner(tmp_path, num_blocks=None, max_num_batched_tokens=32).memory_plan
    assert plan.num_blocks == 8 * 15  # of each sequence: window and chunk, 53 tokens, and one more
