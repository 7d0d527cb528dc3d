"""Every stage of the sampler against the plain reference; a row depends on nothing but itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.runner.reference_sampler import reference_token
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner.sampler import Sampler

CPU = torch.device("cpu")
GREEDY = SamplingParams(max_tokens=100, temperature=0)


def make_sampler(
    vocab_size: int, rows: list[tuple[SamplingParams, list[int], list[int]]]
) -> Sampler:
    sampler = Sampler(vocab_size, max_num_seqs=len(rows), device=CPU)
    for slot, (params, prompt, output) in enumerate(rows):
        sampler.admit(AdmittedSequence(slot, prompt, output, params))
    return sampler


def sample_one(logits: list[float], params: SamplingParams, output: list[int] | None = None) -> int:
    sampler = make_sampler(len(logits), [(params, [], output or [])])
    return sampler.sample(torch.tensor([logits]), [0])[0][0]


def random_logits(seed: int, rows: int, vocab_size: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=generator) * 3).to(dtype)


@st.composite
def sampling_params(draw: st.DrawFn, vocab_size: int) -> SamplingParams:
    token_id = st.integers(0, vocab_size - 1)
    number = st.floats(-2, 2, width=32)
    return SamplingParams(
        max_tokens=100,
        temperature=draw(st.sampled_from([0.0, 0.01, 0.7, 1.0, 2.0])),
        top_p=draw(st.sampled_from([0.0123, 0.4567, 0.9123, 0.99987, 1.0, 1.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, 40, vocab_size, 10_000])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0])),
        presence_penalty=draw(st.one_of(st.just(0.0), number)),
        frequency_penalty=draw(st.one_of(st.just(0.0), number)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3])),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        min_tokens=draw(st.integers(0, 4)),
        stop_token_ids=tuple(draw(st.lists(token_id, max_size=2))),
        logit_bias=tuple(
            draw(st.dictionaries(token_id, st.floats(-100, 100, width=32), max_size=3)).items()
        ),
        allowed_token_ids=tuple(draw(st.one_of(st.just([]), st.lists(token_id, max_size=9)))),
        bad_words=tuple(
            tuple(word)
            for word in draw(st.lists(st.lists(token_id, min_size=1, max_size=3), max_size=3))
        ),
    )


@st.composite
def rows_of(draw: st.DrawFn, vocab_size: int) -> list[tuple[SamplingParams, list[int], list[int]]]:
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=6)
    row = st.tuples(sampling_params(vocab_size), tokens, tokens)
    return draw(st.lists(row, min_size=1, max_size=6))


@pytest.mark.parametrize("vocab_size", [6, 300])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**20), is_bf16=st.booleans())
def test_tokens_equal_the_reference(
    vocab_size: int, data: st.DataObject, seed: int, is_bf16: bool
) -> None:
    rows = data.draw(rows_of(vocab_size))
    sampler = make_sampler(vocab_size, rows)
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    for step in range(2):
        logits = random_logits(seed + step, len(rows), vocab_size, dtype)
        raw = logits.float().numpy()
        tokens, _ = sampler.sample(logits, list(range(len(rows))))
        for row, (params, prompt, output) in enumerate(rows):
            assert tokens[row] == reference_token(raw[row], params, prompt, output), params
            output.append(tokens[row])


LARGE_VOCAB = 6000
TRUNCATIONS = [
    {},
    {"temperature": 0.3},
    {"min_p": 0.02},
    {"min_p": 1e-6},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 3000},
    {"top_k": 50, "top_p": 0.5123},
    {"top_k": 3000, "top_p": 0.9321},
    {"top_p": 0.1234},
    {"top_p": 0.9511},
    {"top_p": 0.99997},
    {"top_p": 0.9511, "min_p": 0.01},
    {"top_k": 4000, "min_p": 1e-4},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.02, 1.0, 4.0])
def test_truncation_of_a_large_vocabulary_equals_the_reference(
    scale: float, dtype: torch.dtype
) -> None:
    """Short list, long list, full sort and no order at all, next to each other in one batch."""
    rows = [
        (SamplingParams(max_tokens=9, seed=i, **settings), [], [])
        for i, settings in enumerate(TRUNCATIONS)
    ]
    sampler = make_sampler(LARGE_VOCAB, rows)
    logits = (random_logits(8, len(rows), LARGE_VOCAB, torch.float32) * scale / 3).to(dtype)
    tokens, _ = sampler.sample(logits, list(range(len(rows))))
    raw = logits.float().numpy()
    expected = [reference_token(raw[i], params, [], []) for i, (params, _, _) in enumerate(rows)]
    assert tokens == expected


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert sample_one([1.0, 3.0, 3.0, 2.0], GREEDY) == 1
    assert sample_one([1.0, 3.0, 3.0, 2.0], replace(GREEDY, logit_bias=((0, 2.0),))) == 0


def test_equal_logits_at_the_cut_all_stay() -> None:
    params = SamplingParams(max_tokens=9, top_k=2)
    drawn = {sample_one([5.0, 4.0, 4.0, 4.0, 0.0], replace(params, seed=i)) for i in range(200)}
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "settings", [{"top_k": 2}, {"top_k": 2, "top_p": 0.9123}, {"top_p": 0.3123}]
)
def test_more_equal_logits_at_the_cut_than_any_list_holds(settings: dict[str, float]) -> None:
    raw = np.zeros(5000, dtype=np.float32)
    raw[7], raw[2500:] = 1.0, -9.0
    rows = [(replace(GREEDY, temperature=1.0, seed=i, **settings), [], []) for i in range(8)]
    tokens, _ = make_sampler(5000, rows).sample(torch.from_numpy(raw).expand(8, -1), list(range(8)))
    assert tokens == [reference_token(raw, params, [], []) for params, _, _ in rows]
    assert len(set(tokens)) > 4


@pytest.mark.parametrize("position", [0, 1])
def test_stop_tokens_wait_for_min_tokens(position: int) -> None:
    params = replace(GREEDY, min_tokens=1, stop_token_ids=(2, 99))
    assert sample_one([0.0, 1.0, 5.0], params, [0] * position) == (2 if position else 1)


def test_bad_word_is_banned_only_after_its_beginning() -> None:
    params = replace(GREEDY, bad_words=((1, 2), (0,)))
    assert sample_one([9.0, 0.0, 5.0], params) == 2
    assert sample_one([9.0, 0.0, 5.0], params, [1]) == 1
    assert sample_one([9.0, 0.0, 5.0], params, [1, 0]) == 2


def test_ids_outside_the_vocabulary_mean_nothing() -> None:
    params = replace(
        GREEDY,
        min_tokens=5,
        stop_token_ids=(50,),
        logit_bias=((50, 3.0), (-1, 3.0)),
        bad_words=((50,), (1, 50)),
        repetition_penalty=1.5,
    )
    assert sample_one([1.0, 2.0, 1.5], params, [50, 1]) == 2


def test_only_prompt_tokens_feel_the_repetition_penalty_at_first() -> None:
    sampler = make_sampler(3, [(replace(GREEDY, repetition_penalty=2.0), [0], [])])
    logits = torch.tensor([[3.0, 2.0, 1.8]])
    assert [sampler.sample(logits, [0])[0][0] for _ in range(3)] == [1, 2, 0]


SEEDED = [
    SamplingParams(max_tokens=99, seed=1),
    SamplingParams(max_tokens=99, seed=2, top_k=20),
    SamplingParams(max_tokens=99, seed=3, top_p=0.9, temperature=0.8),
    SamplingParams(max_tokens=99, seed=4, min_p=0.05),
    SamplingParams(max_tokens=99, seed=5, top_k=500, top_p=0.99),
    SamplingParams(max_tokens=99, seed=6, frequency_penalty=0.7, repetition_penalty=1.2),
    SamplingParams(max_tokens=99, seed=7, min_tokens=4, stop_token_ids=(1,), logprobs=2),
    GREEDY,
    replace(GREEDY, presence_penalty=1.0, bad_words=((3,), (4, 5))),
]


def test_a_row_does_not_depend_on_its_batch() -> None:
    vocab_size = 2500
    rows = [(params, [1, 2, 3], [4]) for params in SEEDED]
    for trial in range(20):
        logits = random_logits(trial, len(rows), vocab_size, torch.bfloat16)
        together, _ = make_sampler(vocab_size, rows).sample(logits, list(range(len(rows))))
        order = np.random.default_rng(trial).permutation(len(rows)).tolist()
        shuffled, _ = make_sampler(vocab_size, rows).sample(logits[order], order)
        assert shuffled == [together[i] for i in order]
        sampler = make_sampler(vocab_size, rows)
        alone = [sampler.sample(logits[i : i + 1], [i])[0][0] for i in range(len(rows))]
        assert alone == together


def test_resumed_sequence_continues_as_if_never_interrupted() -> None:
    vocab_size, prompt = 400, [1, 2, 3]
    steps = [random_logits(s, len(SEEDED), vocab_size, torch.float32) for s in range(8)]
    slots = list(range(len(SEEDED)))
    sampler = make_sampler(vocab_size, [(params, prompt, []) for params in SEEDED])
    tokens = [sampler.sample(logits, slots)[0] for logits in steps]
    emitted = [[step[slot] for step in tokens[:5]] for slot in slots]
    resumed = make_sampler(
        vocab_size, [(p, prompt, done) for p, done in zip(SEEDED, emitted, strict=True)]
    )
    assert [resumed.sample(logits, slots)[0] for logits in steps[5:]] == tokens[5:]
    assert all(len(done) == 5 for done in emitted)  # the caller's lists are its own


def test_released_slot_forgets_its_sequence() -> None:
    sampler = make_sampler(3, [(replace(GREEDY, presence_penalty=2.0), [], [])])
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert [sampler.sample(logits, [0])[0][0] for _ in range(2)] == [0, 1]
    sampler.release(0)
    with pytest.raises(AssertionError, match="slot 0"):
        sampler.sample(logits, [0])
    sampler.admit(AdmittedSequence(0, [], [], replace(GREEDY, presence_penalty=2.0)))
    assert sampler.sample(logits, [0])[0] == [0]


def test_seeds_and_positions_make_other_tokens() -> None:
    logits = torch.zeros(1, 1000)
    sampler = make_sampler(1000, [(SamplingParams(max_tokens=99, seed=5), [], [])])
    walk = [sampler.sample(logits, [0])[0][0] for _ in range(20)]
    seeds = [sample_one([0.0] * 1000, SamplingParams(max_tokens=99, seed=s)) for s in range(20)]
    assert len(set(walk)) > 15 and len(set(seeds)) > 15


def test_draws_follow_temperature_and_nucleus() -> None:
    """4000 rows that differ only in their seeds, against the truncated distribution."""
    num_rows, logits = 4000, torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    params = SamplingParams(max_tokens=9, temperature=1.5, top_p=0.8)
    rows = [(replace(params, seed=i), [], []) for i in range(num_rows)]
    tokens, _ = make_sampler(5, rows).sample(logits.expand(num_rows, -1), list(range(num_rows)))
    probabilities = (logits.double() / 1.5).softmax(0)[:3]  # .50 .26 .13: the third reaches .8
    expected = (probabilities / probabilities.sum() * num_rows).numpy()
    counts = np.bincount(tokens, minlength=5)
    assert counts[3:].tolist() == [0, 0]
    assert ((counts[:3] - expected) ** 2 / expected).sum() < 20


ODD_ROWS = {
    "nan": [float("nan")] * 4,
    "-inf": [float("-inf")] * 4,
    "nan and one": [float("nan"), float("nan"), -5.0, float("nan")],
    "inf": [0.0, float("inf"), float("inf"), 0.0],
    "huge": [3e38, 1.0, -3e38, 0.0],
}


@pytest.mark.parametrize("params", SEEDED)
def test_odd_logits_harm_nobody(params: SamplingParams) -> None:
    params = replace(params, bad_words=(), repetition_penalty=1.0)
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0], *ODD_ROWS.values()])
    rows = [(params, [], [])] * len(logits)
    tokens, _ = make_sampler(4, rows).sample(logits, list(range(len(rows))))
    assert tokens[0] == make_sampler(4, rows).sample(logits[:1], [0])[0][0]
    assert all(0 <= token < 4 for token in tokens)
    found = dict(zip(ODD_ROWS, tokens[1:], strict=True))
    assert (found["nan"], found["-inf"], found["nan and one"]) == (0, 0, 2)
    assert found["inf"] in (1, 2)
    assert found["huge"] == 0


def test_nothing_left_to_choose_fails_its_sequence_alone() -> None:
    params = replace(GREEDY, allowed_token_ids=(0, 99), bad_words=((0,),))
    rows = [
        params,
        replace(params, temperature=1.0, top_k=2),
        replace(params, allowed_token_ids=(99,), bad_words=()),
        GREEDY,
    ]
    sampler = make_sampler(3, [(row, [], []) for row in rows])
    sampled = sampler.step(torch.tensor([[1.0, 3.0, 2.0]] * 4), [0, 1, 2, 3])
    assert sampled.token_ids[3] == 1
    assert set(sampled.failed) == {0, 1, 2}
    assert "allowed_token_ids and bad_words together" in sampled.failed[0]


def test_min_tokens_gives_way_where_nothing_else_is_left() -> None:
    params = replace(GREEDY, allowed_token_ids=(2,), stop_token_ids=(2,), min_tokens=5)
    assert sample_one([1.0, 3.0, 2.0], params) == 2


def test_logprobs_are_of_the_raw_logits_and_only_for_who_asked() -> None:
    silent = SamplingParams(max_tokens=9, seed=1)
    asked = replace(GREEDY, logprobs=2, bad_words=((0,),))
    brief = replace(GREEDY, logprobs=0, temperature=0.5, seed=9)
    rows = [(silent, [], []), (asked, [], []), (brief, [], [])]
    logits = torch.tensor([[4.0, 3.0, 1.0]] * 3)
    tokens, logprobs = make_sampler(3, rows).sample(logits, [0, 1, 2])
    expected = logits[0].log_softmax(0)
    assert logprobs is not None and logprobs[0] is None
    assert logprobs[1] is not None and logprobs[2] is not None
    assert (tokens[1], logprobs[1].token_id, logprobs[1].rank) == (1, 1, 2)
    assert logprobs[1].logprob == pytest.approx(float(expected[1]), abs=1e-6)
    assert logprobs[1].top_ids == [0, 1]
    assert logprobs[1].top_logprobs == pytest.approx(expected[:2].tolist(), abs=1e-6)
    assert (logprobs[2].token_id, logprobs[2].top_ids) == (tokens[2], [])
    _, none = make_sampler(3, rows[:1]).sample(logits[:1], [0])
    assert none is None


def test_logits_are_left_alone_and_padding_is_never_drawn() -> None:
    rows = [(replace(params, logit_bias=((0, 1.0),)), [], []) for params in SEEDED]
    logits = random_logits(1, len(rows), 64, torch.float32)
    logits[:, 60:] = 1e9  # a vocabulary of 60, padded for tensor parallelism
    before = logits.clone()
    tokens, _ = make_sampler(60, rows).sample(logits, list(range(len(rows))))
    assert torch.equal(logits, before)
    assert max(tokens) < 60


def test_empty_step_samples_nothing() -> None:
    assert make_sampler(5, []).sample(torch.empty(0, 5), []) == ([], None)
