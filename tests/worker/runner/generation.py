"""Whole generations of an engine over real runners in this process, on one rank or several."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.worker.models.harness import make_runner
from tests.worker.simulated_group import SimulatedGroup, run_ranks
from worker.config import EngineConfig
from worker.engine.executor import Executor
from worker.engine.lookahead_engine import engine_for
from worker.engine.request import NewRequest
from worker.engine.sampling_params import SamplingParams
from worker.parallel.async_executor import AsyncLocalExecutor, AsyncTPExecutor
from worker.parallel.step_channel import FollowerChannel, LeaderChannel
from worker.parallel.tp_executor import LocalExecutor, follow
from worker.runner.model_runner import ModelRunner

Tokens = dict[int, list[int]]
HOST = "127.0.0.1"


class CountedExecutor(AsyncLocalExecutor):
    """Counts the steps that came while another was under way."""

    num_submitted = 0

    def submit(self, plan):  # type: ignore[no-untyped-def]
        self.num_submitted += 1
        return super().submit(plan)


def requests(samplings: Sequence[SamplingParams], vocab_size: int = 99) -> list[NewRequest]:
    """One for each, with prompts of different lengths that partly share their beginnings."""
    return [
        NewRequest(
            "test",
            handle,
            f"r{handle}",
            [(7 * i + handle // 2) % vocab_size for i in range(5 + 6 * handle)],
            replace(sampling, seed=handle),
            [],
            0.0,
        )
        for handle, sampling in enumerate(samplings)
    ]


def generate(runner: ModelRunner, executor: Executor, asked: list[NewRequest]) -> Tokens:
    """A third of the requests enters later; prompts are computed in chunks."""
    config = EngineConfig(
        num_blocks=runner.plan_num_blocks(),
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=24,
        max_model_len=runner.max_model_len,
        vocab_size=runner.spec.vocab_size,
        eos_token_ids=(),
        windows=runner.kv_groups.windows,
        target_itl_ms=0.0,
    )
    engine = engine_for(config, executor)
    tokens: Tokens = defaultdict(list)
    waiting = list(asked)
    for new in [waiting.pop(0) for _ in range(-(-2 * len(waiting) // 3))]:
        engine.add(new)
    for step in range(1000):
        for output in engine.step():
            assert output.error is None, output.error
            tokens[output.handle] += output.token_ids
        if step % 3 == 2 and waiting:
            engine.add(waiting.pop(0))
        if not engine.has_work and not waiting:
            assert engine.load().num_free_blocks == engine.load().num_blocks
            return dict(tokens)
    raise AssertionError("no end")


def generate_both(
    path: Path, samplings: Sequence[SamplingParams], **overrides: Any
) -> tuple[Tokens, Tokens]:
    """The tokens of steps one after another, and of steps planned ahead, of the same model."""
    runner = make_runner(path, **overrides)
    asked = requests(samplings)
    plain = generate(runner, LocalExecutor(runner), asked)
    runner = make_runner(path, **overrides)
    executor = CountedExecutor(runner)
    ahead = generate(runner, executor, asked)
    assert executor.num_submitted > 3
    return plain, ahead


def generate_on_ranks(
    path: Path, samplings: Sequence[SamplingParams], size: int, **overrides: Any
) -> Tokens:
    """With steps planned ahead, over a real step channel."""
    channel = LeaderChannel(size - 1, HOST, timeout_s=30.0)

    def body(group: SimulatedGroup) -> Tokens:
        runner = make_runner(path, group, **overrides)
        if group.rank:
            follow(runner, FollowerChannel(channel.address, group.rank, 30.0))
            return {}
        executor = AsyncTPExecutor(runner, channel)
        try:
            return generate(runner, executor, requests(samplings))
        finally:
            executor.close()

    return run_ranks(size, body)[0]
