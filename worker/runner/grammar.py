"""Output held to a grammar: which tokens may come next in a sequence.

The bytes of the vocabulary come from the model's own tokenizer.json; llguidance does the parsing.
Knows nothing of text, logits or steps. Used by the sampler on rank 0.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from worker.engine.sampling_params import Grammar

logger = logging.getLogger(__name__)

_MAX_CACHED = 128
_VOCABULARY_TIMEOUT_S = 30.0
_MAX_ERROR_CHARS = 300
# As in gateway/grammar.py, which has refused whatever would not pass here.
_LIMITS = LLParserLimits(initial_lexer_fuel=500_000, max_grammar_size=100_000, verbose_errors=False)

Mask = npt.NDArray[np.bool_]


class SlotGrammar:
    """Where one sequence is in its grammar. Invariant: once `error` is set nothing is forbidden and
    nothing read any more. Used by the engine thread only."""

    __slots__ = ("_has_ended", "_matcher", "_stop_ids", "error")

    def __init__(
        self, matcher: LLMatcher | None, stop_ids: frozenset[int], error: str | None = None
    ) -> None:
        """Without a matcher `error` says why."""
        assert (matcher is None) == (error is not None)
        self._matcher = matcher
        self._stop_ids = stop_ids
        self._has_ended = False
        self.error = error
        self._check()

    def accept(self, token_id: int) -> None:
        """The sequence's next token, sampled here or known before."""
        if self.error is not None or self._has_ended or self._matcher is None:
            return
        if token_id in self._stop_ids:
            self._has_ended = True
            return
        self._matcher.consume_token(token_id)
        self._check()

    def forbid(self, row: Mask) -> None:
        """Sets what may not come next. row: [V], all False; stays so where nothing is forbidden."""
        if self.error is not None or self._has_ended or self._matcher is None:
            return
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        if self.error is None:
            allowed = np.unpackbits(bits, count=min(len(row), bits.size * 8), bitorder="little")
            row[len(allowed) :] = True
            np.equal(allowed, 0, out=row[: len(allowed)])

    def _check(self) -> None:
        if self._matcher is not None and self._matcher.is_error():
            self.error = self._matcher.get_error()[:_MAX_ERROR_CHARS]


class GrammarCompiler:
    """Makes a sequence's grammar; equal ones are compiled once.

    Built with the KV cache: a thread of its own reads the vocabulary (some tenths of a second for
    150k tokens), so that no step waits for it but the very first ones. Otherwise used by the engine
    thread only. Nothing raises: a grammar that cannot be had fails its sequence alone.
    """

    def __init__(self, model_path: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = list(eos_token_ids)
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._tokenizer: LLTokenizer | None = None
        self._why_not = "the vocabulary is still being read"
        self._reader = threading.Thread(
            target=self._read, args=(Path(model_path), vocab_size), name="vocabulary", daemon=True
        )
        self._reader.start()

    def start(self, grammar: Grammar, output_ids: Sequence[int]) -> SlotGrammar:
        """At the place behind the tokens that the sequence has already."""
        self._reader.join(_VOCABULARY_TIMEOUT_S)
        stop_ids = frozenset(self._eos_token_ids)
        if self._tokenizer is None:
            return SlotGrammar(None, stop_ids, f"grammars cannot be used: {self._why_not}")
        try:
            matcher = self._matcher(self._tokenizer, grammar)
        except Exception as error:  # the library raises bare ones
            return SlotGrammar(None, stop_ids, str(error))
        started = SlotGrammar(matcher, stop_ids)
        for token_id in output_ids:
            started.accept(token_id)
        return started

    def _matcher(self, tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
        """At its beginning, and owned by the caller."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=_LIMITS)
            self._compiled[grammar] = compiled
            if len(self._compiled) > _MAX_CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return compiled.deep_copy()

    def _read(self, model_path: Path, vocab_size: int) -> None:
        try:
            text = (model_path / "tokenizer.json").read_text(encoding="utf-8")
            self._tokenizer = _tokenizer(text, vocab_size, self._eos_token_ids)
        except Exception as error:  # the library raises bare ones
            self._why_not = f"the model's tokenizer.json cannot be read ({error})"
            logger.warning("no constrained output: %s", self._why_not)


def _tokenizer(text: str, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    try:
        return LLTokenizer(text, n_vocab=vocab_size, eos_token=eos_token_ids or None)
    except ValueError:  # some files list more tokens than the model has rows
        return LLTokenizer(text, eos_token=eos_token_ids or None)


def _source(grammar: Grammar) -> str:
    """What the library takes: one string for all kinds."""
    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
    return LLMatcher.grammar_from_lark(grammar.text)
