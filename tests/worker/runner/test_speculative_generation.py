"""A real engine over real (tiny, random) models: guesses, many of them right, change no token."""

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.worker.engine.harness import new_request
from tests.worker.models.harness import llama_config, make_checkpoint, make_runner, random_tokens
from tests.worker.simulated_group import SimulatedGroup, run_ranks
from worker.config import EngineConfig, SpeculationConfig
from worker.engine.engine import Engine
from worker.engine.executor import Executor
from worker.engine.step import StepPlan, StepResult
from worker.parallel.step_channel import decode_plan, encode_plan
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.model_runner import ModelRunner

GUESSES = SpeculationConfig(num_speculative_tokens=5, prompt_lookup_max=3, prompt_lookup_min=1)
NUM_TOKENS = 60
REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 1, "min_tokens": 30, "stop_token_ids": tuple(range(99))},
    {"temperature": 0.7, "seed": 5, "allowed_token_ids": (3, 4, 5)},
    {"temperature": 1.0, "seed": 6, "allowed_token_ids": (3, 4, 5, 6), "frequency_penalty": 0.1},
    {"temperature": 0.9, "seed": 7, "top_k": 2, "repetition_penalty": 0.9, "bad_words": ((3, 4),)},
]

Answers = dict[int, tuple[list[int], list[int]]]


def run_engine(executor: Executor, speculation: SpeculationConfig | None) -> tuple[Answers, Engine]:
    """The answers with the tokens that were scored."""
    config = EngineConfig(
        num_blocks=256,
        block_size=4,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_model_len=256,
        vocab_size=99,
        eos_token_ids=(),
        # Whether guesses pay is not the question here: a clock that stands still has them all made.
        speculation=speculation,
    )
    engine = Engine(config, executor, clock=lambda: 0.0)
    for handle, sampling in enumerate(REQUESTS):
        prompt = random_tokens(12 + handle, seed=handle)
        engine.add(new_request(handle, prompt, NUM_TOKENS, **sampling))
    answers: Answers = {handle: ([], []) for handle in range(len(REQUESTS))}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens, scored = answers[output.handle]
            tokens += output.token_ids
            scored += [entry.token_id for entry in output.logprobs or []]
    return answers, engine


@pytest.mark.parametrize("seed", range(3))
def test_random_models_bring_the_same_tokens_with_guesses(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path, llama_config(), seed)
    plain, plain_engine = run_engine(LocalExecutor(make_runner(tmp_path, max_num_seqs=16)), None)
    guessed, engine = run_engine(LocalExecutor(make_runner(tmp_path, max_num_seqs=16)), GUESSES)
    assert guessed == plain
    assert guessed[1][1] == guessed[1][0]
    counters = engine.counters()
    assert counters.accepted_tokens > 20
    assert counters.draft_tokens > counters.accepted_tokens
    assert counters.generation_tokens == plain_engine.counters().generation_tokens


def test_two_ranks_verify_as_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    alone, _ = run_engine(LocalExecutor(make_runner(tmp_path, max_num_seqs=16)), GUESSES)
    plans: SimpleQueue[bytes | None] = SimpleQueue()

    def rank(group: SimulatedGroup) -> tuple[Answers, int]:
        runner = make_runner(tmp_path, group, max_num_seqs=16)
        if group.rank:
            while (frame := plans.get(timeout=60)) is not None:
                runner.execute(decode_plan(frame))
            return {}, 0
        try:
            answers, engine = run_engine(_Leader(runner, plans), GUESSES)
        finally:
            plans.put(None)
        return answers, engine.counters().accepted_tokens

    (answers, num_accepted), _ = run_ranks(2, rank)
    assert answers == alone
    assert num_accepted > 20


class _Leader:
    """Plans reach the follower as they do over the wire."""

    def __init__(self, runner: ModelRunner, plans: "SimpleQueue[bytes | None]") -> None:
        self._runner = runner
        self._plans = plans

    def execute(self, plan: StepPlan) -> StepResult:
        self._plans.put(encode_plan(plan))
        return self._runner.execute(plan)

    def close(self) -> None:
        return None
