"""Chooses the next token of every sequence in a step.

Stages, in the order of the field: raw logprobs, float32, allowed ids, bad words, min_tokens, logit
bias, penalties, grammar, temperature, min-p, top-k, top-p, draw. Rows are grouped by what they
need, so a greedy batch is one argmax. Called by the model runner on rank 0; knows nothing of blocks
or models.
"""

import torch
from torch import Tensor

from worker.engine.step import AdmittedSequence, TokenLogprobs
from worker.runner.constrained_rows import ConstrainedRows
from worker.runner.drawing import Rows, apply_temperature, choose_unseen, draw, greedy, row_argmax
from worker.runner.grammar import GrammarMasks
from worker.runner.grammar_logits import allowed_tokens, forbid_tokens, greedy_in_grammar
from worker.runner.logit_edits import SlotState, apply_edits
from worker.runner.logits import finite_logits, token_logprobs
from worker.runner.sampled import Logprobs, Sampled


class Sampler:
    """Invariant: a row's token is a function of its logits, its own tokens, its parameters and its
    position; never of the other rows. Used by the engine thread only.

    Logits that are NaN count as minus infinity. Where nothing finite is left, the most likely of
    the tokens that may come is taken; where none may come, the sequence fails alone.
    """

    def __init__(
        self,
        vocab_size: int,
        max_num_seqs: int,
        device: torch.device,
        grammars: GrammarMasks | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._device = device
        self._slots: list[SlotState | None] = [None] * max_num_seqs
        self._num_constrained = 0
        self._num_particular = 0  # that need more of their logits than the largest

    @property
    def needs_largest_only(self) -> bool:
        """Whether `take_largest` does for all that are admitted."""
        return not self._num_particular

    def admit(self, seq: AdmittedSequence) -> None:
        grammar = None
        if seq.sampling.grammar is not None:
            assert self._grammars is not None, "a grammar, but no vocabulary"
            grammar = self._grammars.start(seq.slot, seq.sampling.grammar, seq.output_token_ids)
            self._num_constrained += 1
        state = self._slots[seq.slot] = SlotState(seq, self._vocab_size, grammar)
        self._num_particular += not state.needs_largest_only

    def release(self, slot: int) -> None:
        state = self._slots[slot]
        if state is None:
            return
        if state.grammar is not None:
            assert self._grammars is not None
            self._grammars.release(state.grammar)
            self._num_constrained -= 1
        self._num_particular -= not state.needs_largest_only
        self._slots[slot] = None

    def step(
        self, logits: Tensor, slots: list[int], drafts: list[list[int]] | None = None
    ) -> Sampled:
        """The next tokens of these sequences: as `verify` where there are guesses, else `sample`.

        A sequence whose mask has not come yet gets no token; one whose grammar leaves a single way
        to go on gets all the tokens of it.
        """
        if not self._num_constrained:
            return self._sampled(logits, slots, drafts)
        assert self._grammars is not None
        states = [self._state(slot) for slot in slots]
        rows = ConstrainedRows(self._grammars, states, slots)
        return rows.complete(self._sampled(*rows.sampled_now(logits, drafts)))

    def take_largest(
        self, found: list[int], slots: list[int], drafts: list[list[int]] | None = None
    ) -> Sampled:
        """As `step`, of each row's largest logit: where `needs_largest_only`."""
        num_tokens = None
        if drafts is not None:
            kept, num_tokens = _kept_rows(found, drafts)
            found = [found[row] for row in kept]
        self._append(slots, found, num_tokens)
        return Sampled(found, num_tokens=num_tokens)

    def begin(self, logits: Tensor, slots: list[int]) -> tuple[Tensor, list[SlotState]]:
        """The next tokens of sequences that are all self-contained, [S] int64 on the device, and
        whose they are. The same as `sample` brings, but the host waits for nothing.
        """
        states = [self._state(slot) for slot in slots]
        return choose_unseen(logits[:, : self._vocab_size], states), states

    def warm_up(self) -> None:
        """Starts what computes masks."""
        if self._grammars is not None:
            self._grammars.warm_up()

    def sample(self, logits: Tensor, slots: list[int]) -> tuple[list[int], Logprobs]:
        """logits: [S, >= V] of any float type, left as they are; columns beyond V are padding.
        `slots[i]` is the sequence of row i. Returns the tokens, and logprobs if any row asked.
        """
        states = [self._state(slot) for slot in slots]
        logits = logits[:, : self._vocab_size]
        tokens = self._choose(logits, states).tolist() if states else []
        logprobs = _logprobs(logits, states, tokens)
        self._append(slots, tokens, None)
        return tokens, logprobs

    def verify(
        self, logits: Tensor, slots: list[int], drafts: list[list[int]]
    ) -> tuple[list[int], Logprobs, list[int]]:
        """As `sample` for sequences with guesses at their next tokens: [S + D, >= V], each
        sequence's rows together. Returns tokens, logprobs, and how many tokens each sequence got.

        A row is sampled as if the guesses before it were known tokens, with its own position's
        noise; it counts if they were all right. So what comes out is what `sample` would give.
        """
        rows: list[SlotState] = []
        for slot, guesses in zip(slots, drafts, strict=True):
            rows.append(self._state(slot))
            for token_id in guesses:
                rows.append(rows[-1].ahead(token_id))
        logits = logits[:, : self._vocab_size]
        found = self._choose(logits, rows).tolist()
        kept, num_tokens = _kept_rows(found, drafts)
        if len(kept) < len(rows):
            logits = logits[torch.tensor(kept, device=logits.device)]
        tokens = [found[row] for row in kept]
        logprobs = _logprobs(logits, [rows[row] for row in kept], tokens)
        self._append(slots, tokens, num_tokens)
        return tokens, logprobs, num_tokens

    def _append(self, slots: list[int], tokens: list[int], num_tokens: list[int] | None) -> None:
        """num_tokens: of each sequence; None: one."""
        if num_tokens is None:
            for slot, token_id in zip(slots, tokens, strict=True):
                self._state(slot).append(token_id)
            return
        start = 0
        for slot, count in zip(slots, num_tokens, strict=True):
            for token_id in tokens[start : start + count]:
                self._state(slot).append(token_id)
            start += count

    def _sampled(self, logits: Tensor, slots: list[int], drafts: list[list[int]] | None) -> Sampled:
        if drafts is None:
            token_ids, logprobs = self.sample(logits, slots)
            num_tokens = None
        else:
            token_ids, logprobs, num_tokens = self.verify(logits, slots, drafts)
        return Sampled(token_ids, logprobs, num_tokens, self._failures(slots))

    def _failures(self, slots: list[int]) -> dict[int, str]:
        """Of these, the sequences that cannot go on, and why: their tokens mean nothing."""
        states = [(slot, self._state(slot)) for slot in slots]
        return {slot: why for slot, state in states if (why := state.problem) is not None}

    def _state(self, slot: int) -> SlotState:
        state = self._slots[slot]
        assert state is not None, f"slot {slot} is sampled but was not admitted"
        return state

    def _choose(self, logits: Tensor, states: list[SlotState]) -> Tensor:
        plain = [i for i, s in enumerate(states) if s.is_plain]
        if len(plain) == len(states):
            return greedy(logits)
        special = sorted(set(range(len(states))).difference(plain))
        tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
        if plain:
            index = torch.tensor(plain, device=logits.device)
            tokens[index] = greedy(logits[index])
        index = torch.tensor(special, device=logits.device)
        tokens[index] = _choose_special(
            logits[index] if plain else logits, [states[i] for i in special]
        )
        return tokens


def _choose_special(logits: Tensor, states: list[SlotState]) -> Tensor:
    """Rows that are constrained, edited or drawn. Returns [R] int64."""
    if not all(state.is_greedy_in_grammar for state in states):
        return _choose_edited(logits, states)
    tokens, is_odd = greedy_in_grammar(logits, states)
    if bool(is_odd.any()):
        rows = is_odd.nonzero().squeeze(1)
        tokens[rows] = _choose_edited(logits[rows], [states[i] for i in rows.tolist()])
    return tokens


def _choose_edited(logits: Tensor, states: list[SlotState]) -> Tensor:
    """Any rows. Returns [R] int64."""
    x = finite_logits(logits)
    edited = [i for i, state in enumerate(states) if state.has_edits]
    if edited:
        apply_edits(x, edited, [states[i] for i in edited])
    forbid_tokens(x, states)  # last, so that no bias lifts what a grammar forbids
    drawn = [i for i, state in enumerate(states) if not state.params.is_greedy]
    if not drawn:
        tokens = row_argmax(x)
        row_max = x.gather(1, tokens[:, None]).squeeze(1)
    else:
        tokens, row_max = _draw_some(x, drawn, states)
    is_dead = (row_max == -torch.inf) | (tokens >= x.shape[1])
    if bool(is_dead.any()):
        for row in is_dead.nonzero().squeeze(1).tolist():
            tokens[row] = _last_resort(logits[row], states[row])
    return tokens


def _last_resort(logits: Tensor, state: SlotState) -> int:
    """Where no token is left: the most likely of those that may come, whatever min_tokens says; or
    a failure of the sequence, if none may. logits: [V]."""
    may = torch.ones_like(logits, dtype=torch.bool)
    if state.grammar is not None and state.grammar.is_ready:
        may = allowed_tokens(state.grammar.mask, len(logits)).to(logits.device)
    if state.params.allowed_token_ids or state.params.bad_words:
        ids = [i for i in may.nonzero().squeeze(1).tolist() if state.can_follow(i)]
        may = torch.zeros_like(may)
        may[ids] = True
    if not bool(may.any()):
        state.failure = state.conflict
        return 0
    row = finite_logits(logits[None])[0].masked_fill(~may, -torch.inf)
    return int(row.argmax()) if bool(row.isfinite().any()) else int(may.nonzero()[0, 0])


def _draw_some(x: Tensor, drawn: list[int], states: list[SlotState]) -> tuple[Tensor, Tensor]:
    """Draws the rows `drawn`, takes the largest of the others. Returns tokens and maxima, [R]."""
    if len(drawn) == len(states):
        row_max = apply_temperature(x, states)
        return draw(Rows(x, row_max, states)), row_max
    tokens = row_argmax(x)
    row_max = x.gather(1, tokens[:, None]).squeeze(1)
    index = torch.tensor(drawn, device=x.device)
    some, some_states = x[index], [states[i] for i in drawn]
    some_max = apply_temperature(some, some_states)
    tokens[index] = draw(Rows(some, some_max, some_states))
    row_max[index] = some_max
    return tokens, row_max


def _kept_rows(found: list[int], drafts: list[list[int]]) -> tuple[list[int], list[int]]:
    """The rows up to the first wrong guess of each sequence, that one's row included, and how many
    those are. `found`: what was sampled in each row.
    """
    kept: list[int] = []
    num_tokens: list[int] = []
    first = 0
    for guesses in drafts:
        count = 1
        for guess in guesses:
            if found[first + count - 1] != guess:
                break
            count += 1
        kept.extend(range(first, first + count))
        num_tokens.append(count)
        first += len(guesses) + 1
    return kept, num_tokens


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
