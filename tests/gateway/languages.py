"""Whether a grammar takes a text: the real parser over bytes."""

from llguidance import LLMatcher, LLTokenizer

from gateway.tokens import Grammar
from protos.grammar_source import LIMITS, source

BYTES = LLTokenizer("byte")


def problem(grammar: Grammar) -> str:
    return LLMatcher(
        BYTES, source(grammar.kind, grammar.text), log_level=0, limits=LIMITS
    ).get_error()


def takes(grammar: Grammar | None, text: str) -> bool:
    """As the whole answer."""
    assert grammar is not None
    matcher = LLMatcher(BYTES, source(grammar.kind, grammar.text), log_level=0, limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
