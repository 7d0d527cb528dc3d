"""Constrained rows with the real parser and a small tokenizer: what is sampled is in the language,
other rows are as they were, and a grammar that fails harms nobody else.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from tests.gateway.small_tokenizer import BOS_ID, EOS_ID, byte_level_json, metaspace_json
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner.grammar import GrammarCompiler
from worker.runner.sampler import Sampler

VOCAB_SIZE = 400  # more rows than the tokenizer has ids
TOKENIZER = LLTokenizer(byte_level_json().decode(), n_vocab=VOCAB_SIZE, eos_token=EOS_ID)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.json").write_bytes(byte_level_json())
    return GrammarCompiler(str(folder), VOCAB_SIZE, [EOS_ID])


def params(grammar: Grammar | None = JSON, **fields: object) -> SamplingParams:
    return SamplingParams(max_tokens=200, grammar=grammar, stop_token_ids=(EOS_ID,), **fields)  # type: ignore[arg-type]


def make_sampler(compiler: GrammarCompiler, *rows: tuple[SamplingParams, list[int]]) -> Sampler:
    sampler = Sampler(VOCAB_SIZE, len(rows), torch.device("cpu"), compiler)
    for slot, (row, output) in enumerate(rows):
        sampler.admit(AdmittedSequence(slot, [5, 6], output, row))
    return sampler


def logits_at(step: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return torch.randn(rows, VOCAB_SIZE, generator=generator) * 3


def generate(
    sampler: Sampler, seed: int = 0, start: int = 0, stop: Callable[[int], bool] | None = None
) -> list[int]:
    """Until the end-of-sequence id, which is the last."""
    ids: list[int] = []
    while len(ids) < 100:
        ids += sampler.sample(logits_at(start + len(ids), seed=seed), [0])[0]
        assert sampler.failures([0]) == {}
        if ids[-1] == EOS_ID or (stop is not None and stop(len(ids))):
            return ids
    raise AssertionError("it does not end")


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode_bytes(ids).decode()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.0, 0.7, 2.0]))
def test_whatever_the_logits_the_answer_is_in_the_language(compiler, seed, temperature):
    sampler = make_sampler(compiler, (params(temperature=temperature, seed=seed), []))
    *ids, end = generate(sampler, seed)
    answer = json.loads(text_of(ids))
    assert answer["a"] in (1, 22) and len(answer["b"]) <= 3
    assert end == EOS_ID


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 5.0},
        {"logit_bias": ((BOS_ID, 100.0), (EOS_ID, 100.0))},
        {"top_k": 1, "top_p": 0.1},
        {"min_p": 0.9},
        {"min_tokens": 150},
        {"allowed_token_ids": (7,)},
        {"bad_words": tuple((i,) for i in range(EOS_ID, 300))},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_no_other_parameter_lifts_or_breaks_the_grammar(compiler, fields):
    sampler = make_sampler(compiler, (params(temperature=1.0, **fields), []))
    *ids, _ = generate(sampler)
    assert json.loads(text_of(ids))["a"] in (1, 22)


def test_a_language_of_one_text_is_written_whatever_the_model_wants(compiler):
    grammar = Grammar("lark", 'start: "héllo"')
    *ids, _ = generate(make_sampler(compiler, (params(grammar, temperature=0), [])))
    assert text_of(ids) == "héllo"


def test_it_ends_where_it_may_and_not_before(compiler):
    sampler = make_sampler(compiler, (params(Grammar("regex", "a{3,5}"), temperature=1.0), []))
    biased = torch.zeros(1, VOCAB_SIZE)
    biased[0, EOS_ID] = 50
    ids: list[int] = []
    while EOS_ID not in ids:
        ids += sampler.sample(biased, [0])[0]
    assert text_of(ids[:-1]) == "aaa"


@pytest.mark.parametrize("place", [1, 3, 7])
def test_a_resumed_sequence_goes_on_as_if_never_interrupted(compiler, place):
    row = params(temperature=1.0, seed=9)
    whole = generate(make_sampler(compiler, (row, [])))
    begun = whole[:place]
    rest = generate(make_sampler(compiler, (row, begun)), start=place)
    assert begun + rest == whole


def test_other_rows_are_as_without_it(compiler):
    free = [params(None, temperature=t, seed=s) for t, s in ((0.0, 1), (1.0, 2), (0.7, 3))]
    alone = make_sampler(compiler, *((row, []) for row in free))
    mixed = make_sampler(compiler, *((row, []) for row in (*free, params(temperature=1.0))))
    logits = logits_at(0, rows=4)
    logits[:, EOS_ID] = -100
    assert mixed.sample(logits, [0, 1, 2, 3])[0][:3] == alone.sample(logits[:3], [0, 1, 2])[0]


def test_equal_grammars_do_not_share_their_place(compiler):
    row = params(temperature=0)
    sampler = make_sampler(compiler, (row, []), (row, []))
    first = sampler.sample(logits_at(0), [0])[0]
    both = logits_at(0).repeat(2, 1)
    again = sampler.sample(both, [0, 1])[0]
    assert again[1] == first[0]


def test_logprobs_are_those_of_the_raw_logits(compiler):
    sampler = make_sampler(compiler, (params(temperature=0, logprobs=1), []))
    logits = logits_at(0)
    [token_id], logprobs = sampler.sample(logits, [0])
    assert logprobs is not None and logprobs[0] is not None
    assert logprobs[0].logprob == pytest.approx(logits.log_softmax(1)[0, token_id].item(), abs=1e-4)
    assert logprobs[0].rank > 1


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("lark", "start: nothing"),
        Grammar("regex", "a(b"),
        Grammar("json_schema", '{"type": "objct"}'),
        Grammar("json_schema", "no json"),
    ],
    ids=lambda grammar: grammar.text,
)
def test_a_bad_grammar_fails_its_sequence_alone(compiler, grammar):
    sampler = make_sampler(compiler, (params(grammar), []), (params(), []))
    sampler.sample(logits_at(0, rows=2), [0, 1])
    failures = sampler.failures([0, 1])
    assert set(failures) == {0} and 0 < len(failures[0]) <= 300


def test_tokens_that_the_grammar_forbids_fail_a_resumed_sequence(compiler):
    sampler = make_sampler(compiler, (params(), TOKENIZER.tokenize_str("hello")))
    sampler.sample(logits_at(0), [0])
    assert set(sampler.failures([0])) == {0}


def test_without_a_tokenizer_only_constrained_sequences_fail(tmp_path: Path):
    compiler = GrammarCompiler(str(tmp_path), VOCAB_SIZE, [EOS_ID])
    sampler = make_sampler(compiler, (params(), []), (params(None), []))
    sampler.sample(logits_at(0, rows=2), [0, 1])
    failures = sampler.failures([0, 1])
    assert set(failures) == {0} and "tokenizer.json" in failures[0]


@pytest.mark.parametrize("vocab_size", [100, 266, 512])
def test_models_with_more_or_fewer_rows_than_tokens_are_held_too(tmp_path: Path, vocab_size: int):
    (tmp_path / "tokenizer.json").write_bytes(metaspace_json())
    compiler = GrammarCompiler(str(tmp_path), vocab_size, [EOS_ID])
    started = compiler.start(Grammar("regex", "[!-9]+"), [])
    forbidden = np.zeros(vocab_size, dtype=np.bool_)
    started.forbid(forbidden)
    assert started.error is None
    assert not forbidden.all() and forbidden[EOS_ID]
