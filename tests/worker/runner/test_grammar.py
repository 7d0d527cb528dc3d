"""Constrained rows with the real parser in its process and a small tokenizer: what is sampled is in
the language, other rows are as they were, and a grammar that fails harms nobody else.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.small_tokenizer import BOS_ID, EOS_ID, metaspace_json
from tests.worker.runner.masks import (
    TOKENIZER,
    VOCAB_SIZE,
    logits_at,
    make_client,
    make_sampler,
    per_sequence,
    text_of,
    write_tokenizer,
)
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner.grammar import GrammarTimeouts
from worker.runner.mask_client import MaskClient
from worker.runner.sampler import Sampler

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
ENDLESS = Grammar("lark", "start: /a+/ /a+/ start?")  # the library never returns from its mask
IMPATIENT = GrammarTimeouts(step=0.05, alone=0.05, mask=1.0, compilation=1.0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MaskClient]:
    client = make_client(write_tokenizer(tmp_path_factory.mktemp("model")))
    yield client
    client.close()


@pytest.fixture
def own_client(tmp_path: Path) -> Iterator[MaskClient]:
    """For tests that end its process."""
    client = make_client(write_tokenizer(tmp_path))
    yield client
    client.close()


def params(grammar: Grammar | None = JSON, **fields: object) -> SamplingParams:
    return SamplingParams(max_tokens=200, grammar=grammar, stop_token_ids=(EOS_ID,), **fields)  # type: ignore[arg-type]


def generate(
    sampler: Sampler,
    seed: int = 0,
    start: int = 0,
    stop: Callable[[int], bool] | None = None,
    logits: Callable[[int], torch.Tensor] | None = None,
) -> list[int]:
    """Until the end-of-sequence id, which is the last."""
    ids: list[int] = []
    while len(ids) < 100:
        position = start + len(ids)
        row = logits_at(position, seed=seed) if logits is None else logits(position)
        sampled = sampler.step(row, [0])
        assert sampled.failed == {}
        ids += sampled.token_ids
        if ids[-1] == EOS_ID or (stop is not None and stop(len(ids))):
            return ids
    raise AssertionError("it does not end")


def failures(sampler: Sampler, slots: list[int], most_steps: int = 200) -> dict[int, str]:
    """Of the first step in which anybody fails."""
    for position in range(most_steps):
        failed = sampler.step(logits_at(position, rows=len(slots)), slots).failed
        if failed:
            return failed
    raise AssertionError("nobody fails")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.0, 0.7, 2.0]))
def test_whatever_the_logits_the_answer_is_in_the_language(client, seed, temperature):
    sampler = make_sampler(client, (params(temperature=temperature, seed=seed), []))
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
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_no_other_parameter_lifts_or_breaks_the_grammar(client, fields):
    sampler = make_sampler(client, (params(temperature=1.0, **fields), []))
    *ids, _ = generate(sampler)
    assert json.loads(text_of(ids))["a"] in (1, 22)


@pytest.mark.parametrize(
    "fields",
    [{"allowed_token_ids": (7,)}, {"bad_words": tuple((i,) for i in range(EOS_ID, 400))}],
    ids=lambda fields: next(iter(fields)),
)
def test_parameters_that_leave_no_token_fail_their_sequence(client, fields):
    sampler = make_sampler(client, (params(temperature=1.0, **fields), []), (params(), []))
    failed = failures(sampler, [0, 1])
    assert set(failed) == {0}
    assert "the grammar and" in failed[0] and next(iter(fields)) in failed[0]


def test_parameters_that_leave_some_tokens_are_held_with_the_grammar(client):
    grammar = Grammar("regex", "[abc]{6}")
    a, b, c = (TOKENIZER.tokenize_str(letter)[0] for letter in "abc")
    allowed = params(grammar, temperature=1.0, allowed_token_ids=(a, b, EOS_ID))
    assert set(generate(make_sampler(client, (allowed, [])))) <= {a, b, EOS_ID}
    barred = params(grammar, temperature=1.0, bad_words=((a,), (c, b)), allowed_token_ids=(a, b, c))
    sampler = make_sampler(client, (barred, []))
    ids = generate(sampler, stop=lambda count: count == 6)
    assert a not in ids and "cb" not in text_of(ids)


def test_a_language_of_one_text_is_written_whatever_the_model_wants(client):
    grammar = Grammar("lark", 'start: "héllo"')
    *ids, _ = generate(make_sampler(client, (params(grammar, temperature=0), [])))
    assert text_of(ids) == "héllo"


def test_it_ends_where_it_may_and_not_before(client):
    sampler = make_sampler(client, (params(Grammar("regex", "a{3,5}"), temperature=1.0), []))
    biased = torch.zeros(1, VOCAB_SIZE)
    biased[0, EOS_ID] = 50
    ids = generate(sampler, logits=lambda _: biased)
    assert text_of(ids[:-1]) == "aaa"


def test_what_is_forced_comes_at_once_and_is_what_would_come_one_by_one(client):
    row = params(temperature=1.0, seed=4)
    at_once = make_sampler(client, (row, []))
    *first, _ = per_sequence(at_once.step(logits_at(0), [0]))[0]
    assert len(first) > 3 and text_of(first).startswith('{"a"')
    whole = generate(make_sampler(client, (row, [])))
    one_by_one = make_sampler(client, (params(temperature=1.0, seed=4, logprobs=0), []))
    ids: list[int] = []
    while not ids or ids[-1] != EOS_ID:
        sampled = one_by_one.step(logits_at(len(ids)), [0])
        assert sampled.num_tokens == [1]
        ids += sampled.token_ids
    assert ids == whole


@pytest.mark.parametrize("place", [1, 3, 7])
def test_a_resumed_sequence_goes_on_as_if_never_interrupted(client, place):
    row = params(temperature=1.0, seed=9)
    whole = generate(make_sampler(client, (row, [])))
    begun = whole[:place]
    rest = generate(make_sampler(client, (row, begun)), start=place)
    assert begun + rest == whole


def test_other_rows_are_as_without_it(client):
    free = [params(None, temperature=t, seed=s) for t, s in ((0.0, 1), (1.0, 2), (0.7, 3))]
    alone = make_sampler(client, *((row, []) for row in free))
    mixed = make_sampler(client, *((row, []) for row in (*free, params(temperature=1.0))))
    logits = logits_at(0, rows=4)
    logits[:, EOS_ID] = -100
    rows = per_sequence(mixed.step(logits, [0, 1, 2, 3]))
    assert rows[:3] == per_sequence(alone.step(logits[:3], [0, 1, 2]))


def test_equal_grammars_do_not_share_their_place(client):
    row = params(Grammar("regex", "[a-f]{1,9}"), temperature=0)
    sampler = make_sampler(client, (row, []), (row, []))
    first = sampler.step(logits_at(0), [0]).token_ids
    again = per_sequence(sampler.step(logits_at(0).repeat(2, 1), [0, 1]))
    assert again[1] == first


def test_a_slot_is_used_again_for_another_grammar(client):
    sampler = make_sampler(client, (params(temperature=0), []))
    for text in ("xx", "yyy"):
        sampler.release(0)
        row = params(Grammar("regex", text), temperature=0)

        sampler.admit(AdmittedSequence(0, [5], [], row))
        assert text_of(generate(sampler)[:-1]) == text


def test_logprobs_are_those_of_the_raw_logits(client):
    sampler = make_sampler(client, (params(temperature=0, logprobs=1), []))
    logits = logits_at(0)
    sampled = sampler.step(logits, [0])
    [token_id], logprobs = sampled.token_ids, sampled.logprobs
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
def test_a_bad_grammar_fails_its_sequence_alone(client, grammar):
    sampler = make_sampler(client, (params(grammar), []), (params(), []))
    failed = failures(sampler, [0, 1])
    assert set(failed) == {0} and 0 < len(failed[0]) <= 300


def test_tokens_that_the_grammar_forbids_fail_a_resumed_sequence(client):
    sampler = make_sampler(client, (params(), TOKENIZER.tokenize_str("hello")))
    assert set(failures(sampler, [0])) == {0}


def test_a_grammar_that_hangs_fails_alone_and_the_others_go_on(own_client):
    row = params(temperature=1.0, seed=3)
    expected = generate(make_sampler(own_client, (row, [])))
    hangs = params(ENDLESS)
    sampler = make_sampler(own_client, (row, []), (hangs, []), timeouts=IMPATIENT)
    ids: list[int] = []
    failed: dict[int, str] = {}
    started = time.monotonic()
    while not (ids and ids[-1] == EOS_ID and failed):
        assert time.monotonic() - started < 30
        slots = [0] if failed else [0, 1]
        if ids and ids[-1] == EOS_ID:
            slots = [1]
        logits = logits_at(len(ids)).repeat(len(slots), 1)
        sampled = sampler.step(logits, slots)
        failed |= sampled.failed
        if slots[0] == 0:
            ids += per_sequence(sampled)[0]
    assert ids == expected
    assert set(failed) == {1} and "takes too long" in failed[1]


def test_a_grammar_that_hung_is_refused_at_once_next_time(own_client):
    sampler = make_sampler(own_client, (params(ENDLESS), []), timeouts=IMPATIENT)
    assert set(failures(sampler, [0])) == {0}
    sampler.release(0)

    sampler.admit(AdmittedSequence(0, [5], [], params(ENDLESS)))
    assert set(sampler.step(logits_at(0), [0]).failed) == {0}


def test_a_process_that_dies_between_steps_is_replaced(own_client):
    row = params(temperature=1.0, seed=8)
    expected = generate(make_sampler(own_client, (row, [])))
    sampler = make_sampler(own_client, (row, []))
    ids = list(sampler.step(logits_at(0), [0]).token_ids)
    assert own_client._process is not None
    deadline = time.monotonic() + 10
    while own_client.at_work() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(own_client._process.pid, 9)
    own_client._process.wait(10)
    ids += generate(sampler, start=len(ids))
    assert ids == expected


def test_a_late_mask_costs_a_step_its_token_and_nothing_else(own_client, client):
    hasty = GrammarTimeouts(step=0.0, first=0.0, alone=0.0)
    row = params(temperature=1.0, seed=2)
    sampler = make_sampler(own_client, (row, []), (params(None, temperature=0), []), timeouts=hasty)
    logits = logits_at(0, rows=2)
    sampled = sampler.step(logits, [0, 1])  # its process has just begun to start
    assert sampled.num_tokens == [0, 1] and sampled.failed == {}
    assert sampled.token_ids == [int(logits[1].argmax())]
    expected = per_sequence(make_sampler(client, (row, [])).step(logits[:1], [0]))[0]
    deadline = time.monotonic() + 20
    while not (late := sampler.step(logits[:1], [0]).token_ids):
        assert time.monotonic() < deadline
    assert late == expected


def test_without_a_tokenizer_only_constrained_sequences_fail(tmp_path: Path):
    client = make_client(str(tmp_path))
    sampler = make_sampler(client, (params(), []), (params(None), []))
    failed = failures(sampler, [0, 1])
    assert set(failed) == {0} and "tokenizer" in failed[0]
    client.close()


@pytest.mark.parametrize("vocab_size", [100, 266, 512])
def test_models_with_more_or_fewer_rows_than_tokens_are_held_too(tmp_path: Path, vocab_size: int):
    client = make_client(write_tokenizer(tmp_path, metaspace_json()), vocab_size)
    row = params(Grammar("regex", "[!-9]{3}"), temperature=1.0)
    sampler = make_sampler(client, (row, []), vocab_size=vocab_size)
    ids: list[int] = []
    while len(ids) < 3:
        sampled = sampler.step(torch.zeros(1, vocab_size), [0])
        assert sampled.failed == {}
        ids += sampled.token_ids
    assert EOS_ID not in ids and max(ids) < vocab_size
    client.close()


def test_closing_ends_the_process(own_client):
    generate(make_sampler(own_client, (params(), [])))
    assert own_client._process is not None
    pid = own_client._process.pid
    own_client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
