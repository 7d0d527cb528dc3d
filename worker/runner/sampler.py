"""Chooses the next token of every sequence in a step.

Stages, in the order of the field: raw logprobs, float32, allowed ids, bad words, min_tokens, logit
bias, penalties, grammar, temperature, min-p, top-k, top-p, draw. Rows are grouped by what they
need, so a greedy batch is one argmax. Called by the model runner on rank 0; knows nothing of blocks
or models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.engine.step import AdmittedSequence, TokenLogprobs
from worker.runner.grammar import GrammarCompiler
from worker.runner.logit_edits import SlotState, apply_edits
from worker.runner.logits import finite_logits, token_logprobs
from worker.runner.noise import gumbel, noise_keys, noisy_argmax, noisy_argmax_above
from worker.runner.truncation import exact_threshold, find_candidates, min_p_floor

Logprobs = list[TokenLogprobs | None] | None


class Sampler:
    """Invariant: a row's token is a function of its logits, its own tokens, its parameters and its
    position; never of the other rows. Used by the engine thread only.

    Logits that are NaN count as minus infinity. Where no token is left to choose from (all masked,
    or nothing finite), the most likely token of the raw logits is taken, of those that its grammar
    allows: one odd request must not end the others.
    """

    def __init__(
        self,
        vocab_size: int,
        max_num_seqs: int,
        device: torch.device,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._device = device
        self._slots: list[SlotState | None] = [None] * max_num_seqs

    def admit(self, seq: AdmittedSequence) -> None:
        grammar = None
        if seq.sampling.grammar is not None:
            assert self._grammars is not None, "a grammar, but no vocabulary"
            grammar = self._grammars.start(seq.sampling.grammar, seq.output_token_ids)
        self._slots[seq.slot] = SlotState(seq, self._vocab_size, grammar)

    def release(self, slot: int) -> None:
        self._slots[slot] = None

    def sample(self, logits: Tensor, slots: list[int]) -> tuple[list[int], Logprobs]:
        """logits: [S, >= V] of any float type, left as they are; columns beyond V are padding.
        `slots[i]` is the sequence of row i. Returns the tokens, and logprobs if any row asked.
        """
        states = [self._state(slot) for slot in slots]
        logits = logits[:, : self._vocab_size]
        tokens = self._choose(logits, states).tolist() if states else []
        logprobs = _logprobs(logits, states, tokens)
        for state, token_id in zip(states, tokens, strict=True):
            state.append(token_id)
        return tokens, logprobs

    def failures(self, slots: list[int]) -> dict[int, str]:
        """Of these, the sequences whose grammar has failed, and why: their tokens mean nothing."""
        grammars = [(slot, self._state(slot).grammar) for slot in slots]
        return {slot: g.error for slot, g in grammars if g is not None and g.error is not None}

    def _state(self, slot: int) -> SlotState:
        state = self._slots[slot]
        assert state is not None, f"slot {slot} is sampled but was not admitted"
        return state

    def _choose(self, logits: Tensor, states: list[SlotState]) -> Tensor:
        plain = [i for i, s in enumerate(states) if s.params.is_greedy and not s.has_edits]
        if len(plain) == len(states):
            return _greedy(logits)
        special = sorted(set(range(len(states))).difference(plain))
        tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
        if plain:
            index = torch.tensor(plain, device=logits.device)
            tokens[index] = _greedy(logits[index])
        index = torch.tensor(special, device=logits.device)
        tokens[index] = _choose_special(
            logits[index] if plain else logits, [states[i] for i in special]
        )
        return tokens


def _choose_special(logits: Tensor, states: list[SlotState]) -> Tensor:
    """Rows that are edited or drawn. Returns [R] int64."""
    x = finite_logits(logits)
    edited = [i for i, state in enumerate(states) if state.has_edits]
    forbidden: Tensor | None = None
    if edited:
        apply_edits(x, edited, [states[i] for i in edited])
        forbidden = _forbidden(states, x)
    if forbidden is not None:  # last, so that no bias lifts what the grammar forbids
        x.masked_fill_(forbidden, -torch.inf)
    drawn = [i for i, state in enumerate(states) if not state.params.is_greedy]
    if not drawn:
        tokens = _row_argmax(x)
        row_max = x.gather(1, tokens[:, None]).squeeze(1)
    else:
        tokens, row_max = _draw_some(x, drawn, states)
    is_dead = (row_max == -torch.inf) | (tokens >= x.shape[1])
    if bool(is_dead.any()):
        raw = finite_logits(logits)
        if forbidden is not None:
            raw.masked_fill_(forbidden, -torch.inf)
        tokens[is_dead] = _row_argmax(raw[is_dead])
    return tokens


def _forbidden(states: list[SlotState], x: Tensor) -> Tensor | None:
    """[R, V] bool: what the rows' grammars do not allow next; None: there are none."""
    if all(state.grammar is None for state in states):
        return None
    forbidden = np.zeros(x.shape, dtype=np.bool_)  # one array, so one transfer and one fill
    for row, state in zip(forbidden, states, strict=True):
        if state.grammar is not None:
            state.grammar.forbid(row)
    return torch.from_numpy(forbidden).to(x.device)


def _draw_some(x: Tensor, drawn: list[int], states: list[SlotState]) -> tuple[Tensor, Tensor]:
    """Draws the rows `drawn`, takes the largest of the others. Returns tokens and maxima, [R]."""
    if len(drawn) == len(states):
        row_max = _apply_temperature(x, states)
        return _draw(_Rows(x, row_max, states)), row_max
    tokens = _row_argmax(x)
    row_max = x.gather(1, tokens[:, None]).squeeze(1)
    index = torch.tensor(drawn, device=x.device)
    some, some_states = x[index], [states[i] for i in drawn]
    some_max = _apply_temperature(some, some_states)
    tokens[index] = _draw(_Rows(some, some_max, some_states))
    row_max[index] = some_max
    return tokens, row_max


def _apply_temperature(x: Tensor, states: list[SlotState]) -> Tensor:
    """In place; returns the rows' maxima [R]."""
    if any(state.params.temperature != 1 for state in states):
        x /= x.new_tensor([state.params.temperature for state in states])[:, None]
    return x.amax(dim=1)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows to draw from: logits after temperature [R, V], their maxima [R], and whose they are."""

    x: Tensor
    row_max: Tensor
    states: list[SlotState]

    def keys(self) -> Tensor:
        seeds = [state.params.seed for state in self.states]
        return noise_keys(seeds, [state.position for state in self.states], self.x.device)

    def take(self, rows: list[int]) -> "_Rows":
        if len(rows) == len(self.states):
            return self
        index = torch.tensor(rows, device=self.x.device)
        return _Rows(self.x[index], self.row_max[index], [self.states[i] for i in rows])


def _draw(rows: _Rows) -> Tensor:
    """Truncates and draws. Returns [R] int64."""
    ordered = [i for i, s in enumerate(rows.states) if s.truncation.needs_order]
    if not ordered:
        return _draw_dense(rows)
    if len(ordered) == len(rows.states):
        return _draw_truncated(rows)
    dense = sorted(set(range(len(rows.states))).difference(ordered))
    tokens = torch.empty(len(rows.states), dtype=torch.int64, device=rows.x.device)
    tokens[torch.tensor(ordered, device=rows.x.device)] = _draw_truncated(rows.take(ordered))
    tokens[torch.tensor(dense, device=rows.x.device)] = _draw_dense(rows.take(dense))
    return tokens


def _draw_truncated(rows: _Rows) -> Tensor:
    """top-k and top-p: as a rule noise for a short list of tokens is enough."""
    found = find_candidates(rows.x, rows.row_max, [state.truncation for state in rows.states])
    scores = found.logits.double() + gumbel(rows.keys()[:, None, :], found.token_ids.int())
    tokens = found.token_ids.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
    open_rows = (~found.is_complete).nonzero().squeeze(1).tolist()
    if open_rows:
        rest = rows.take(open_rows)
        threshold = found.threshold[open_rows]
        unknown = (~found.is_known[open_rows]).nonzero().squeeze(1).tolist()
        if unknown:
            hard = rest.take(unknown)
            hard_params = [state.truncation for state in hard.states]
            threshold[unknown] = exact_threshold(hard.x, hard.row_max, hard_params)
        tokens[open_rows] = noisy_argmax_above(rest.x, rest.keys(), threshold)
    return tokens


def _draw_dense(rows: _Rows) -> Tensor:
    """Any token may win; min-p only forbids the unlikely ones."""
    params = [state.truncation for state in rows.states]
    if any(row.min_p > 0 for row in params):
        return noisy_argmax_above(rows.x, rows.keys(), min_p_floor(rows.row_max, params))
    return noisy_argmax(rows.x, rows.keys())


def _greedy(logits: Tensor) -> Tensor:
    """The first of the largest in each row; NaN counts as minus infinity. Returns [R] int64."""
    tokens = _row_argmax(logits)
    is_nan = logits.gather(1, tokens[:, None]).squeeze(1).isnan()
    if bool(is_nan.any()):
        tokens[is_nan] = _row_argmax(finite_logits(logits[is_nan]))
    return tokens


def _row_argmax(x: Tensor) -> Tensor:
    """As torch.argmax(dim=1): the first of equal ones, NaN before all. On CPUs numpy is quicker."""
    if x.device.type != "cpu":
        return x.argmax(dim=1)
    return torch.from_numpy(x.detach().float().numpy().argmax(axis=1))


def _logprobs(logits: Tensor, states: list[SlotState], tokens: list[int]) -> Logprobs:
    wanted = [(i, s.params.logprobs) for i, s in enumerate(states) if s.params.logprobs is not None]
    if not wanted:
        return None
    rows = [i for i, _ in wanted]
    picked = (
        logits if len(rows) == len(states) else logits[torch.tensor(rows, device=logits.device)]
    )
    chosen = torch.tensor([tokens[i] for i in rows], device=logits.device)
    entries = token_logprobs(picked, chosen, [num_top or 0 for _, num_top in wanted])
    found: list[TokenLogprobs | None] = [None] * len(states)
    for row, entry in zip(rows, entries, strict=True):
        found[row] = entry
    return found
