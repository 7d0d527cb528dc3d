"""Models whose every layer has a window, through the engine: a cache smaller than the sequences."""

from pathlib import Path
from typing import Any

import pytest

from tests.worker.engine.harness import new_request
from tests.worker.models.harness import (
    TINY,
    make_checkpoint,
    make_runner,
    random_tokens,
    reference_logits,
)
from worker.config import EngineConfig
from worker.engine.engine import Engine
from worker.errors import MemoryPlanError
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.model_runner import ModelRunner

WINDOW, BLOCK_SIZE = 21, 4


def mistral_config(**overrides: Any) -> Any:
    from transformers import MistralConfig

    settings = {**TINY, "sliding_window": WINDOW, "head_dim": 12, **overrides}
    return MistralConfig(**settings, architectures=["MistralForCausalLM"])


def starcoder2_config() -> Any:
    from transformers import Starcoder2Config

    settings = {**TINY, "sliding_window": WINDOW, "bos_token_id": 1, "eos_token_id": 1}
    return Starcoder2Config(**settings, architectures=["Starcoder2ForCausalLM"])


def make_engine(runner: ModelRunner, num_blocks: int, budget: int) -> Engine:
    config = EngineConfig(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        max_model_len=runner.max_model_len,
        vocab_size=runner.spec.vocab_size,
        eos_token_ids=(),
        window=runner.spec.kv_window,
    )
    return Engine(config, LocalExecutor(runner))


def run_engine(engine: Engine, prompts: dict[int, list[int]], max_tokens: int) -> dict[int, Any]:
    tokens: dict[int, list[int]] = {handle: [] for handle in prompts}
    for handle, prompt in prompts.items():
        engine.add(new_request(handle, prompt, max_tokens, temperature=0.0))
    for _ in range(2000):
        if not engine.has_work:
            break
        for output in engine.step():
            assert output.error is None, output.error
            tokens[output.handle] += output.token_ids
    engine.check_integrity()
    return tokens


def assert_greedy(model: Any, prompt: list[int], tokens: list[int]) -> None:
    wanted = reference_logits(model, prompt + tokens).argmax(dim=-1)
    assert tokens == wanted[len(prompt) - 1 : -1].tolist()


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
    assert plan.max_model_len == 256 and plan.window == WINDOW
    assert "keep the last 21" in "\n".join(plan.describe())
    with pytest.raises(MemoryPlanError, match="less than one sequence of 256 tokens"):
        make_runner(tmp_path, num_blocks=6, max_model_len=256)


def test_cpu_cache_holds_windows_and_not_whole_sequences(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, mistral_config())
    plan = make_runner(tmp_path, num_blocks=None, max_num_batched_tokens=32).memory_plan
    assert plan.num_blocks == 8 * 15  # of each sequence: window and chunk, 53 tokens, and one more
