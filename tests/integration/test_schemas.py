"""300 nasty JSON schemas through the gateway's check and an engine: each answer is valid, or the
schema is refused in bounded time, whatever the model wants to say.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from shutil import copy

import jsonschema
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gateway.errors import InvalidRequestError
from gateway.grammar_checker import GrammarChecker
from gateway.schemas.completion import CompletionRequest
from gateway.structured_outputs import answer_grammar
from tests.nasty_schemas import NUM_SCHEMAS, schema
from worker.config import EngineConfig, RunnerConfig
from worker.engine.engine import Engine
from worker.engine.request import FinishReason, NewRequest
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.parallel.group import SingleGroup
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.model_runner import ModelRunner

DEMO = Path(__file__).resolve().parents[2] / "worker" / "demo" / "weights"
MAX_TOKENS = 400
BATCH = 32
NUM_BLOCKS = 2048
REFUSAL_S = 15.0  # 5 s of trial, on a machine that does much else
FEW = range(0, NUM_SCHEMAS, 7)  # of every kind


@dataclass
class Answer:
    text: str
    reason: FinishReason | None
    error: str = ""


class Model:
    """An engine, and texts for its tokens."""

    def __init__(self, folder: Path) -> None:
        config = RunnerConfig(
            str(folder), device="cpu", max_num_seqs=BATCH, num_blocks=NUM_BLOCKS, num_threads=1
        )
        runner = ModelRunner(config, SingleGroup())
        runner.load()
        runner.allocate_kv_cache(NUM_BLOCKS)
        eos = runner.model_config.eos_token_ids
        self.eos_token_ids = tuple(eos)
        engine_config = EngineConfig(
            num_blocks=NUM_BLOCKS,
            block_size=config.block_size,
            max_num_seqs=BATCH,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=runner.max_model_len,
            vocab_size=runner.spec.vocab_size,
            eos_token_ids=self.eos_token_ids,
        )
        self._engine = Engine(engine_config, LocalExecutor(runner))
        self._bytes = token_bytes(folder, runner.spec.vocab_size)

    def write(self, grammars: dict[int, Grammar], temperature: float) -> dict[int, Answer]:
        for index, grammar in grammars.items():
            sampling = SamplingParams(
                max_tokens=MAX_TOKENS,
                temperature=temperature,
                seed=index,
                stop_token_ids=self.eos_token_ids,
                grammar=grammar,
            )
            new = NewRequest("", index, f"s{index}", [10, 11, 12], sampling, [], 0.0)
            self._engine.add(new)
        ids: dict[int, list[int]] = {index: [] for index in grammars}
        answers: dict[int, Answer] = {}
        while self._engine.has_work:
            for output in self._engine.step():
                ids[output.handle] += output.token_ids
                if output.finish_reason is not None:
                    error = output.error.message if output.error else ""
                    text = self._text(ids[output.handle])
                    answers[output.handle] = Answer(text, output.finish_reason, error)
        return answers

    def _text(self, ids: list[int]) -> str:
        kept = [token_id for token_id in ids if token_id not in self.eos_token_ids]
        return b"".join(self._bytes[token_id] for token_id in kept).decode(errors="replace")


def token_bytes(folder: Path, vocab_size: int) -> list[bytes]:
    from worker.runner.mask_process import Setup, read_tokenizer

    tokenizer = read_tokenizer(Setup(0, 0, 0, vocab_size, str(folder), ()))
    return [tokenizer.decode_bytes([token_id]) for token_id in range(vocab_size)]


@pytest.fixture(scope="module")
def demo_model() -> Model:
    return Model(DEMO)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its every token is as likely as any other."""
    folder = tmp_path_factory.mktemp("random")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copy(DEMO / name, folder / name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
        initializer_range=0.02,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    yield Model(folder)


async def usable(indices: range) -> tuple[dict[int, Grammar], dict[int, str]]:
    """Grammars of the schemas that pass the gateway, and the refusals of the others."""
    checker = GrammarChecker()
    grammars: dict[int, Grammar] = {}
    refused: dict[int, str] = {}
    try:
        for index in indices:
            started = time.monotonic()
            try:
                body = {"prompt": "x", "structured_outputs": {"json": schema(index)[1]}}
                grammar = answer_grammar(CompletionRequest.model_validate(body))
                assert grammar is not None
                await checker.check(grammar)
                grammars[index] = Grammar(grammar.kind, grammar.text)
            except InvalidRequestError as error:
                assert error.param == "structured_outputs" and len(error.message) < 500
                refused[index] = error.message
            assert time.monotonic() - started < REFUSAL_S, f"schema {index} takes too long"
    finally:
        await checker.close()
    return grammars, refused


def check(index: int, answer: Answer) -> None:
    """A whole answer is valid; one that was cut off at its limit is not judged."""
    if answer.reason != "stop":
        return
    wanted = json.loads(json.dumps(schema(index)[1]), parse_float=Decimal)
    found = json.loads(answer.text, parse_float=Decimal)
    checks = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(wanted, format_checker=checks).validate(found)


async def run(model: Model, indices: range, temperature: float) -> dict[int, Answer]:
    """Raises: ValidationError and the like for the first answer that is wrong."""
    grammars, refused = await usable(indices)
    answers = model.write(grammars, temperature)
    assert set(answers) == set(grammars)
    for index, answer in answers.items():
        check(index, answer)
    failed = {index for index, answer in answers.items() if answer.reason == "error"}
    assert all(answers[index].error for index in failed)
    # Not by refusing everything: most schemas are ordinary, and most answers end.
    ended = sum(answer.reason == "stop" for answer in answers.values())
    assert len(refused) + len(failed) < 0.25 * len(indices), refused
    assert ended > 0.6 * len(indices)
    return answers


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_answers_to_some_schemas_are_valid(demo_model: Model, temperature: float):
    await run(demo_model, FEW, temperature)


async def test_they_are_with_random_weights(random_model: Model):
    await run(random_model, FEW, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_answers_to_all_schemas_are_valid(demo_model: Model, temperature: float):
    await run(demo_model, range(NUM_SCHEMAS), temperature)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_all_are_with_random_weights(random_model: Model):
    await run(random_model, range(NUM_SCHEMAS), 1.0)
