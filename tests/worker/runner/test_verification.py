"""Guesses verified by the sampler bring exactly what sampling token by token brings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.runner.test_sampler import make_sampler, rows_of
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import TokenLogprobs
from worker.runner.sampler import Sampler

VOCAB_SIZE = 12
NUM_TOKENS = 14


class Model:
    """Logits as a function of the tokens so far: few of them, so that text repeats itself."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._by_last = rng.normal(size=(VOCAB_SIZE, VOCAB_SIZE)) * 3

    def logits(self, tokens: list[int]) -> torch.Tensor:
        last = tokens[-1] if tokens else 0
        return torch.tensor(self._by_last[(last + len(tokens) % 2) % VOCAB_SIZE])


Scored = list[TokenLogprobs | None]


def one_by_one(sampler: Sampler, model: Model, known: list[int]) -> tuple[list[int], Scored]:
    tokens, scored = list(known), []
    for _ in range(NUM_TOKENS):
        new, logprobs = sampler.sample(model.logits(tokens)[None], [0])
        tokens += new
        scored += logprobs or [None]
    return tokens[len(known) :], scored


def with_guesses(
    sampler: Sampler, model: Model, known: list[int], truth: list[int], random: np.random.Generator
) -> tuple[list[int], Scored]:
    """Guesses are right for a while, then wrong. Overshoots; the caller cuts."""
    tokens, scored = list(known), []
    while len(tokens) - len(known) < NUM_TOKENS:
        done = len(tokens) - len(known)
        drafts = list(truth[done : done + int(random.integers(0, 5))])
        drafts += random.integers(0, VOCAB_SIZE, size=int(random.integers(0, 3))).tolist()
        rows = [model.logits(tokens + drafts[:i]) for i in range(len(drafts) + 1)]
        new, logprobs, counts = sampler.verify(torch.stack(rows), [0], [drafts])
        assert counts == [len(new)]
        assert len(new) <= len(drafts) + 1
        tokens += new
        scored += logprobs or [None] * len(new)
    return tokens[len(known) :], scored


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=rows_of(VOCAB_SIZE), seed=st.integers(0, 1000), wants_logprobs=st.booleans())
def test_verified_guesses_are_what_sampling_one_by_one_brings(
    rows: list[tuple[SamplingParams, list[int], list[int]]], seed: int, wants_logprobs: bool
) -> None:
    params, prompt, output = rows[0]
    if wants_logprobs:
        fields = {name: getattr(params, name) for name in SamplingParams.__slots__}
        params = SamplingParams(**{**fields, "logprobs": 2})
    model, known = Model(seed), prompt + output
    plain = make_sampler(VOCAB_SIZE, [(params, prompt, output)])
    guessing = make_sampler(VOCAB_SIZE, [(params, prompt, output)])
    truth, scored = one_by_one(plain, model, known)
    tokens, verified = with_guesses(guessing, model, known, truth, np.random.default_rng(seed))
    assert tokens[:NUM_TOKENS] == truth
    assert verified[:NUM_TOKENS] == scored


def test_sequences_with_and_without_guesses_share_a_step() -> None:
    greedy = SamplingParams(max_tokens=50, temperature=0)
    drawn = SamplingParams(max_tokens=50, seed=5, repetition_penalty=1.3)
    model = Model(1)
    sampler = make_sampler(VOCAB_SIZE, [(greedy, [1], []), (drawn, [2], []), (greedy, [3], [])])
    alone = [
        one_by_one(make_sampler(VOCAB_SIZE, [(params, [i], [])]), model, [i])[0]
        for i, params in ((1, greedy), (2, drawn), (3, greedy))
    ]
    drafts = [alone[0][:2], [], [alone[2][0], (alone[2][1] + 1) % VOCAB_SIZE, 0]]
    rows = [
        model.logits([first, *guesses[:i]])
        for first, guesses in zip((1, 2, 3), drafts, strict=True)
        for i in range(len(guesses) + 1)
    ]
    tokens, logprobs, counts = sampler.verify(torch.stack(rows), [0, 1, 2], drafts)
    assert counts == [3, 1, 2]
    assert tokens == alone[0][:3] + alone[1][:1] + alone[2][:2]
    assert logprobs is None


@pytest.mark.parametrize("num_wrong", [0, 1, 4])
def test_what_was_guessed_wrong_leaves_no_trace(num_wrong: int) -> None:
    """Counts of the penalties and the position are those of the accepted tokens only."""
    params = SamplingParams(max_tokens=50, seed=9, frequency_penalty=1.5, presence_penalty=0.5)
    model = Model(2)
    truth, _ = one_by_one(make_sampler(VOCAB_SIZE, [(params, [4], [])]), model, [4])
    sampler = make_sampler(VOCAB_SIZE, [(params, [4], [])])
    wrong = [(truth[0] + 1) % VOCAB_SIZE] * num_wrong
    rows = [model.logits([4, *wrong[:i]]) for i in range(num_wrong + 1)]
    first, _, _ = sampler.verify(torch.stack(rows), [0], [wrong])
    rest, _ = one_by_one(sampler, model, [4, *first])
    assert (first + rest)[:NUM_TOKENS] == truth


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_the_largest_logits_alone_bring_the_same(seed: int) -> None:
    params = SamplingParams(max_tokens=100, temperature=0.0)
    random = np.random.default_rng(seed)
    whole, alone = (make_sampler(VOCAB_SIZE, [(params, [i], []) for i in range(3)]) for _ in "ab")
    assert alone.needs_largest_only
    for _ in range(4):
        drafts = [random.integers(0, 3, size=random.integers(0, 3)).tolist() for _ in range(3)]
        num_rows = 3 + sum(map(len, drafts))
        logits = torch.tensor(random.normal(size=(num_rows, 3)) * 3).repeat(1, 4)
        found = logits.argmax(dim=1).tolist()
        slots = [2, 0, 1]
        assert alone.take_largest(found, slots, drafts) == whole.step(logits, slots, drafts)
    logits = torch.tensor(random.normal(size=(3, VOCAB_SIZE)))
    found = logits.argmax(dim=1).tolist()
    assert alone.take_largest(found, [0, 1, 2]) == whole.step(logits, [0, 1, 2])


@pytest.mark.parametrize(
    "particular",
    [
        SamplingParams(max_tokens=9, temperature=0.7),
        SamplingParams(max_tokens=9, temperature=0.0, logprobs=0),
        SamplingParams(max_tokens=9, temperature=0.0, min_tokens=2),
        SamplingParams(max_tokens=9, temperature=0.0, logit_bias=((1, 2.0),)),
    ],
    ids=["drawn", "logprobs", "min_tokens", "bias"],
)
def test_one_request_that_needs_more_is_enough(particular: SamplingParams) -> None:
    plain = SamplingParams(max_tokens=9, temperature=0.0)
    sampler = make_sampler(VOCAB_SIZE, [(plain, [1], []), (particular, [2], [])])
    assert not sampler.needs_largest_only
    sampler.release(1)
    sampler.release(1)
    assert sampler.needs_largest_only
