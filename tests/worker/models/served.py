"""A tiny model behind an engine, and its greedy tokens against transformers'."""

from typing import Any

from tests.worker.engine.harness import new_request
from tests.worker.models.harness import reference_logits
from worker.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.executor import Executor
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.model_runner import ModelRunner

BLOCK_SIZE = 4


def make_engine(
    runner: ModelRunner, num_blocks: int, budget: int, executor: Executor | None = None
) -> Engine:
    config = EngineConfig(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        max_model_len=runner.max_model_len,
        vocab_size=runner.spec.vocab_size,
        eos_token_ids=(),
        windows=runner.kv_groups.windows,
    )
    return Engine(config, executor or LocalExecutor(runner))


def run_engine(
    engine: Engine, prompts: dict[int, list[int]], max_tokens: int
) -> dict[int, list[int]]:
    """Greedy tokens by handle."""
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
    assert not engine.has_work, "the engine does not come to an end"
    return tokens


def assert_greedy(model: Any, prompt: list[int], tokens: list[int]) -> None:
    """Each token is what transformers continues the ones before it with."""
    wanted = reference_logits(model, prompt + tokens).argmax(dim=-1)
    assert tokens == wanted[len(prompt) - 1 : -1].tolist()
