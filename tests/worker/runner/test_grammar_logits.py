"""Masks on logits: the fast ways give what choosing token by token gives."""

import numpy as np
import pytest
import torch

from worker.engine.sampling_params import Grammar, SamplingParams
from worker.engine.step import AdmittedSequence
from worker.runner.grammar import SlotGrammar
from worker.runner.grammar_logits import allowed_tokens, forbid_tokens, greedy_in_grammar
from worker.runner.logit_edits import SlotState

GRAMMAR = Grammar("regex", ".*")


def states_of(masks: np.ndarray, vocab_size: int) -> list[SlotState]:
    """With a mask each, [R, V / 8]."""
    params = SamplingParams(max_tokens=9, temperature=0, grammar=GRAMMAR)
    states: list[SlotState] = []
    for row, mask in enumerate(masks):
        grammar = SlotGrammar(row + 1, row, mask, GRAMMAR, [])
        grammar.is_ready = True
        states.append(SlotState(AdmittedSequence(row, [1], [], params), vocab_size, grammar))
    return states


def random_masks(rng: np.random.Generator, rows: int, vocab_size: int) -> np.ndarray:
    """Some allow much, some next to nothing."""
    shape = (rows, (vocab_size + 31) // 32 * 4)
    masks = rng.integers(0, 256, shape, dtype=np.uint8)
    masks[::3] &= rng.integers(0, 256, shape, dtype=np.uint8)[::3]
    masks[1] = 0
    masks[1, 0] = 0b100
    return masks


@pytest.mark.parametrize("vocab_size", [40, 100, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_allowed_is_found(vocab_size: int, dtype: torch.dtype):
    rng = np.random.default_rng(vocab_size)
    masks = random_masks(rng, 37, vocab_size)
    states = states_of(masks, vocab_size)
    # Few values, so that ties are the rule: the first of the largest counts.
    logits = torch.from_numpy(rng.integers(-3, 4, (37, vocab_size))).to(dtype)
    before = logits.clone()
    tokens, is_odd = greedy_in_grammar(logits, states)
    assert not is_odd.any() and torch.equal(logits, before)
    for row, mask in enumerate(masks):
        allowed = allowed_tokens(mask, vocab_size)
        expected = torch.where(allowed, logits[row].float(), -torch.inf).argmax()
        assert tokens[row] == expected or dtype != torch.float32
        assert allowed[tokens[row]] and logits[row, tokens[row]] == logits[row, expected]


def test_rows_without_a_finite_choice_are_odd():
    masks = np.zeros((4, 4), dtype=np.uint8)
    masks[1:, 0] = 0b11
    logits = torch.zeros(4, 32)
    logits[2, 0] = torch.nan
    logits[3, :2] = -torch.inf
    _, is_odd = greedy_in_grammar(logits, states_of(masks, 32))
    assert is_odd.tolist() == [True, False, True, True]


def test_sequences_without_a_mask_are_odd():
    states = states_of(np.full((2, 4), 255, dtype=np.uint8), 32)
    assert states[1].grammar is not None
    states[1].grammar.is_ready = False
    assert greedy_in_grammar(torch.zeros(2, 32), states)[1].all()


def test_only_constrained_rows_change():
    masks = random_masks(np.random.default_rng(0), 3, 100)
    states = states_of(masks, 100)
    assert states[1].grammar is not None
    states[1].grammar.is_ready = False
    x = torch.randn(3, 100)
    before = x.clone()
    forbid_tokens(x, states)
    assert torch.equal(x[1], before[1])
    for row in (0, 2):
        allowed = allowed_tokens(masks[row], 100)
        assert torch.equal(x[row][allowed], before[row][allowed])
        assert bool((x[row][~allowed] == -torch.inf).all())
