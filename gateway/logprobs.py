"""Token log-probabilities in the forms of the chat and the text completion APIs. Pure."""

from dataclasses import dataclass

from gateway.schemas.answers import (
    ChatLogprobs,
    PromptLogprobs,
    RankedLogprob,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
)
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import TokenLogprobs

_FLOOR = -9999.0  # JSON has no -inf


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token shown to the client. `scores` None: the first of an echoed prompt has no logprob."""

    token_id: int
    offset: int  # where its text begins in the choice's text
    scores: TokenLogprobs | None


def chat_logprobs(
    tokens: list[ScoredToken], num_top: int, tokenizer: TextTokenizer
) -> ChatLogprobs:
    return ChatLogprobs(
        [_chat_entry(token.scores, num_top, tokenizer) for token in tokens if token.scores]
    )


def _chat_entry(entry: TokenLogprobs, num_top: int, tokenizer: TextTokenizer) -> TokenLogprob:
    return TokenLogprob(
        token=tokenizer.token_text(entry.token_id),
        logprob=_floored(entry.logprob),
        bytes=list(tokenizer.token_bytes(entry.token_id)),
        top_logprobs=[
            TopLogprob(
                tokenizer.token_text(id_), _floored(logprob), list(tokenizer.token_bytes(id_))
            )
            for id_, logprob in entry.top[:num_top]
        ],
    )


def text_logprobs(
    tokens: list[ScoredToken], num_top: int, tokenizer: TextTokenizer
) -> TextLogprobs:
    return TextLogprobs(
        text_offset=[token.offset for token in tokens],
        token_logprobs=[_logprob(token) for token in tokens],
        tokens=[_name(token.token_id, tokenizer) for token in tokens],
        top_logprobs=[
            None if token.scores is None else _alternatives(token.scores, num_top, tokenizer)
            for token in tokens
        ],
    )


def _logprob(token: ScoredToken) -> float | None:
    return None if token.scores is None else _floored(token.scores.logprob)


def _alternatives(entry: TokenLogprobs, num_top: int, tokenizer: TextTokenizer) -> dict[str, float]:
    """The most likely ones and the token itself, which makes at most one more."""
    found = {_name(id_, tokenizer): _floored(logprob) for id_, logprob in entry.top[:num_top]}
    found.setdefault(_name(entry.token_id, tokenizer), _floored(entry.logprob))
    return found


def _name(token_id: int, tokenizer: TextTokenizer) -> str:
    """Part of a character has no text: OpenAI writes `bytes:\\xf0\\x9f`, so that names differ."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def prompt_logprobs(
    entries: list[TokenLogprobs], num_top: int, tokenizer: TextTokenizer
) -> PromptLogprobs:
    """vLLM's form: one dict a prompt token, by token id; the first token has none."""
    return [None, *(_ranked(entry, num_top, tokenizer) for entry in entries)]


def _ranked(
    entry: TokenLogprobs, num_top: int, tokenizer: TextTokenizer
) -> dict[str, RankedLogprob]:
    found = {
        str(entry.token_id): RankedLogprob(
            _floored(entry.logprob), entry.rank, tokenizer.token_text(entry.token_id)
        )
    }
    for place, (id_, logprob) in enumerate(entry.top[:num_top]):
        ranked = RankedLogprob(_floored(logprob), place + 1, tokenizer.token_text(id_))
        found.setdefault(str(id_), ranked)
    return found


def _floored(logprob: float) -> float:
    return max(logprob, _FLOOR)
