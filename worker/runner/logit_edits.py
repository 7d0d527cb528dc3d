"""The stages that change single logits of single requests: allowed ids, bad words, min_tokens,
logit bias and the three penalties, in this order.

Each is sparse: the work is proportional to the ids concerned, not to the vocabulary, and a request
without a stage pays nothing for it. What a request brings is kept in a `SlotState`; the sampler
owns them and calls `apply_edits` once a step with its own float32 copy of the logits.
"""

from collections.abc import Callable, Iterable
from copy import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.engine.sampling_params import SamplingParams
from worker.engine.step import UNKNOWN_TOKEN, AdmittedSequence
from worker.runner.grammar import SlotGrammar
from worker.runner.truncation import TruncationParams

IdArray = npt.NDArray[np.int64]
_NO_IDS: IdArray = np.empty(0, dtype=np.int64)


class TokenCounts:
    """Which tokens a request's penalties concern, and how often each was generated.

    Growable parallel arrays in order of first appearance; ids are unique. A count of 0 is a prompt
    token that was not generated yet: only the repetition penalty sees it.
    """

    __slots__ = ("_counts", "_ids", "_index")

    def __init__(self, prompt_ids: Iterable[int], output_ids: Iterable[int]) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        for token_id in prompt_ids:
            self._place(token_id)
        for token_id in output_ids:
            self.record(token_id)

    def record(self, token_id: int) -> None:
        place = self._place(token_id)  # first: it may replace the arrays
        self._counts[place] += 1

    def copy(self) -> "TokenCounts":
        other = TokenCounts((), ())
        other._index = dict(self._index)
        other._ids, other._counts = self._ids.copy(), self._counts.copy()
        return other

    @property
    def ids(self) -> IdArray:
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: len(self._index)]

    def _place(self, token_id: int) -> int:
        place = self._index.setdefault(token_id, len(self._index))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        return place


class SlotState:
    """What the sampler remembers of one admitted sequence. Owned by the sampler's thread.

    Ids outside the vocabulary are dropped: there is no logit that they could mean.
    """

    def __init__(
        self, seq: AdmittedSequence, vocab_size: int, grammar: SlotGrammar | None = None
    ) -> None:
        params = seq.sampling
        self.params = params
        self.grammar = grammar
        self.failure: str | None = None  # no token can follow, and why
        self.output_ids = list(seq.output_token_ids)
        self.truncation = TruncationParams(
            top_k=params.top_k if 0 < params.top_k < vocab_size else 0,
            top_p=params.top_p,
            min_p=params.min_p,
        )
        self.allowed_ids = _known_ids(params.allowed_token_ids, vocab_size)
        self.stop_ids = _known_ids(params.stop_token_ids, vocab_size)
        self.bias = [(i, value) for i, value in params.logit_bias if 0 <= i < vocab_size]
        words = [word for word in params.bad_words if word and 0 <= word[-1] < vocab_size]
        self.bad_ids = _known_ids({word[0] for word in words if len(word) == 1}, vocab_size)
        self.bad_words = [word for word in words if len(word) > 1]
        self.counts = self._make_counts(seq, vocab_size)
        self.has_edits = bool(
            params.allowed_token_ids
            or self.bias
            or words
            or params.min_tokens > 0
            or self.counts is not None
        )
        is_largest = params.is_greedy and not self.has_edits  # of those that may come
        self.is_plain = is_largest and grammar is None
        self.is_greedy_in_grammar = is_largest and grammar is not None
        self.needs_largest_only = self.is_plain and params.logprobs is None

    @property
    def position(self) -> int:
        """Of the next token among all that this request generates, here or elsewhere."""
        return len(self.output_ids)

    def ahead(self, token_id: int) -> "SlotState":
        """The state after one more token, should it come; this one stays as it is."""
        assert self.grammar is None, "a grammar cannot be taken back"
        other = copy(self)
        other.output_ids = [*self.output_ids, token_id]
        if self.counts is not None:
            other.counts = self.counts.copy()
            other.counts.record(token_id)
        return other

    def reserve(self) -> int:
        """A place among the output for a token that is not known yet. Nothing here may hang on
        which token it is: see `SamplingParams.is_self_contained`.
        """
        assert self.params.is_self_contained, "a token that the host must see"
        self.output_ids.append(UNKNOWN_TOKEN)
        return len(self.output_ids) - 1

    def append(self, token_id: int) -> None:
        self.output_ids.append(token_id)
        if self.counts is not None:
            self.counts.record(token_id)

    def banned_ids(self) -> IdArray:
        """Bad words that the next token would complete, and stop ids that would come too early."""
        ids = [self.bad_ids]
        if self.bad_words:
            ends = [word[-1] for word in self.bad_words if self._ends_with(word[:-1])]
            ids.append(np.array(ends, dtype=np.int64))
        if self.position < self.params.min_tokens:
            ids.append(self.stop_ids)
        return np.concatenate(ids)

    @property
    def problem(self) -> str | None:
        """Why this sequence cannot go on; None: it can."""
        if self.grammar is not None and self.grammar.error is not None:
            return self.grammar.error
        return self.failure

    @property
    def conflict(self) -> str:
        """Said where nothing may come next."""
        params = self.params
        asked = {
            "the grammar": params.grammar is not None,
            "allowed_token_ids": bool(params.allowed_token_ids),
            "bad_words": bool(params.bad_words),
        }
        names = " and ".join(name for name, is_asked in asked.items() if is_asked)
        return f"{names} together leave no token that may come next"

    def can_follow(self, token_id: int) -> bool:
        """Whether the ids that this request allows and forbids let it come, min_tokens aside."""
        if self.params.allowed_token_ids and token_id not in self.params.allowed_token_ids:
            return False
        return all(
            word[-1] != token_id or (len(word) > 1 and not self._ends_with(word[:-1]))
            for word in self.params.bad_words
        )

    def _ends_with(self, prefix: tuple[int, ...]) -> bool:
        return tuple(self.output_ids[-len(prefix) :]) == prefix

    def _make_counts(self, seq: AdmittedSequence, vocab_size: int) -> TokenCounts | None:
        params = seq.sampling
        repeats = params.repetition_penalty != 1
        if not (repeats or params.frequency_penalty or params.presence_penalty):
            return None
        prompt = [i for i in seq.prompt_token_ids if 0 <= i < vocab_size] if repeats else []
        return TokenCounts(prompt, [i for i in self.output_ids if 0 <= i < vocab_size])


def apply_edits(x: Tensor, rows: list[int], states: list[SlotState]) -> None:
    """Edits x in place. x: [R, V] float32; `states[i]` belongs to row `rows[i]`."""
    _keep_allowed(x, rows, states)
    at = _gather_ids(x, rows, [state.banned_ids() for state in states])
    if at is not None:
        x[at] = -torch.inf
    _add_bias(x, rows, states)
    _penalize(x, rows, states)


def _keep_allowed(x: Tensor, rows: list[int], states: list[SlotState]) -> None:
    limited = [
        (row, state.allowed_ids)
        for row, state in zip(rows, states, strict=True)
        if state.params.allowed_token_ids
    ]
    if not limited:
        return
    limited_rows = [row for row, _ in limited]
    at = _gather_ids(x, limited_rows, [ids for _, ids in limited])
    kept = None if at is None else x[at]
    x.index_fill_(0, torch.tensor(limited_rows, device=x.device), -torch.inf)
    if at is not None and kept is not None:
        x[at] = kept


def _add_bias(x: Tensor, rows: list[int], states: list[SlotState]) -> None:
    biased = [(row, s.bias) for row, s in zip(rows, states, strict=True) if s.bias]
    if not biased:
        return
    ids = [np.array([i for i, _ in bias], dtype=np.int64) for _, bias in biased]
    at = _gather_ids(x, [row for row, _ in biased], ids)
    values = x.new_tensor([value for _, bias in biased for _, value in bias])
    if at is not None:
        x.index_put_(at, values, accumulate=True)


def _penalize(x: Tensor, rows: list[int], states: list[SlotState]) -> None:
    found = [
        (row, state.params, state.counts)
        for row, state in zip(rows, states, strict=True)
        if state.counts is not None
    ]
    at = _gather_ids(x, [row for row, _, _ in found], [counts.ids for _, _, counts in found])
    if at is None:
        return
    lengths = [len(counts.ids) for _, _, counts in found]

    def spread(value: Callable[[SamplingParams], float]) -> Tensor:
        per_row = np.array([value(params) for _, params, _ in found], dtype=np.float32)
        return torch.from_numpy(np.repeat(per_row, lengths)).to(x.device)

    counts = torch.from_numpy(np.concatenate([c.counts for _, _, c in found])).to(x.device)
    repetition = spread(lambda params: params.repetition_penalty)
    values = x[at]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread(lambda params: params.frequency_penalty) * counts
    values -= spread(lambda params: params.presence_penalty) * (counts > 0)
    x[at] = values


def _gather_ids(x: Tensor, rows: list[int], ids: list[IdArray]) -> tuple[Tensor, Tensor] | None:
    """Row and column indices of all these ids; None when there are none."""
    lengths = [len(row_ids) for row_ids in ids]
    if not any(lengths):
        return None
    row_index = torch.from_numpy(np.repeat(np.array(rows, dtype=np.int64), lengths))
    id_index = torch.from_numpy(np.concatenate(ids))
    return row_index.to(x.device), id_index.to(x.device)


def _known_ids(ids: Iterable[int], vocab_size: int) -> IdArray:
    return np.array([i for i in ids if 0 <= i < vocab_size], dtype=np.int64)
