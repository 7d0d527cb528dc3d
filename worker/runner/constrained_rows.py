"""What grammars change in a step: sequences whose masks are late sit it out, and those that can go
on in one way only get all the tokens of it at once.

Made by the sampler for a step in which anybody is constrained; the rows it samples in between are
ordinary ones.
"""

import torch
from torch import Tensor

from worker.runner.grammar import GrammarMasks, SlotGrammar
from worker.runner.logit_edits import SlotState
from worker.runner.sampled import Logprobs, Sampled

Drafts = list[list[int]] | None


class ConstrainedRows:
    """One step's sequences, in its order. Life: construct, `sampled_now`, sample, `complete`."""

    def __init__(self, masks: GrammarMasks, states: list[SlotState], slots: list[int]) -> None:
        self._masks = masks
        self._states = states
        self._slots = slots
        grammars = [state.grammar for state in states]
        waiting = [grammar for grammar in grammars if grammar is not None]
        masks.settle(waiting, is_alone=len(waiting) == len(states))
        self._is_late = [g is not None and not g.is_settled for g in grammars]

    def sampled_now(self, logits: Tensor, drafts: Drafts) -> tuple[Tensor, list[int], Drafts]:
        """The logits, slots and guesses of the sequences whose masks are there."""
        if not any(self._is_late):
            return logits, self._slots, drafts
        kept = [i for i, is_late in enumerate(self._is_late) if not is_late]
        num_rows = [1 + len(guesses) for guesses in drafts] if drafts else [1] * len(self._slots)
        is_kept = torch.tensor([not is_late for is_late in self._is_late])
        rows = is_kept.repeat_interleave(torch.tensor(num_rows)).to(logits.device)
        slots = [self._slots[i] for i in kept]
        return logits[rows], slots, None if drafts is None else [drafts[i] for i in kept]

    def complete(self, sampled: Sampled) -> Sampled:
        """With the forced tokens, and nothing for those who were late. Has the next masks
        computed."""
        if not any(self._is_late) and sampled.num_tokens is None and sampled.logprobs is None:
            result = self._one_each(sampled)
        else:
            result = self._any_number(sampled)
        self._masks.flush()
        return result

    def _one_each(self, sampled: Sampled) -> Sampled:
        """The usual case: a token for everybody."""
        accept = self._masks.accept
        token_ids: list[int] = []
        num_tokens: list[int] = []
        for state, token_id in zip(self._states, sampled.token_ids, strict=True):
            new = [token_id]
            if state.grammar is not None:
                if state.grammar.forced:
                    new += _forced_behind(state, state.grammar, token_id)
                accept(state.grammar, new)
            token_ids += new
            num_tokens.append(len(new))
        if len(token_ids) == len(num_tokens):
            return sampled
        return Sampled(token_ids, None, num_tokens, sampled.failed)

    def _any_number(self, sampled: Sampled) -> Sampled:
        token_ids: list[int] = []
        logprobs: Logprobs = None if sampled.logprobs is None else []
        num_tokens: list[int] = []
        place = 0
        counts = iter(sampled.num_tokens or [1] * len(self._slots))
        for state, is_late in zip(self._states, self._is_late, strict=True):
            count = 0 if is_late else next(counts)
            new = sampled.token_ids[place : place + count]
            forced: list[int] = []
            if state.grammar is not None and new:
                forced = _forced_behind(state, state.grammar, new[0])
                self._masks.accept(state.grammar, new + forced)
            token_ids += new + forced
            num_tokens.append(count + len(forced))
            if logprobs is not None and sampled.logprobs is not None:
                logprobs += [*sampled.logprobs[place : place + count], *[None] * len(forced)]
            place += count
        return Sampled(token_ids, logprobs, num_tokens, sampled.failed)


def _forced_behind(state: SlotState, grammar: SlotGrammar, token_id: int) -> list[int]:
    """The rest of the only way to go on, noted as the sequence's; none where each token must be
    seen by itself."""
    forced, params = grammar.forced, state.params
    if len(forced) < 2 or forced[0] != token_id or params.logprobs is not None:
        return []
    if params.allowed_token_ids or params.bad_words:
        return []
    for forced_id in forced[1:]:
        state.append(forced_id)
    return forced[1:]
