"""A request's sampling fields as resolved settings: the model's defaults, vocabulary and window.

Pure functions between schemas and TokenRequests. Whatever breaks a rule names the field.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from gateway.errors import ContextLengthError, InvalidRequestError
from gateway.grammar import grammar_of
from gateway.schemas.common import SamplingFields
from gateway.text.model_text import TextModel
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import ModelInfo, SamplingSettings

T = TypeVar("T")

_MAX_BAD_WORDS = 128  # token sequences
_MAX_LOGIT_BIAS = 100.0
_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class LogprobLimits:
    sample: int | None
    prompt: int | None


def resolve_sampling(
    body: SamplingFields,
    model: ModelInfo,
    text: TextModel,
    max_tokens: int,
    logprobs: LogprobLimits,
) -> SamplingSettings:
    """The settings of the first choice. Raises: InvalidRequestError."""
    defaults = text.defaults
    if body.min_tokens is not None and body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens must be at most max_tokens={max_tokens}, got {body.min_tokens}.",
            param="min_tokens",
        )
    return SamplingSettings(
        max_tokens=max_tokens,
        temperature=_first(body.temperature, defaults.temperature, 1.0),
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        top_k=max(_first(body.top_k, defaults.top_k, 0), 0),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        seed=_seed(body.seed),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=_known_ids(body.stop_token_ids or (), model, "stop_token_ids"),
        ignore_eos=body.ignore_eos,
        logit_bias=_logit_bias(body.logit_bias or {}, model),
        allowed_token_ids=_allowed_ids(body.allowed_token_ids, model),
        bad_words=_bad_words(body.bad_words or [], text.tokenizer),
        logprobs=logprobs.sample,
        prompt_logprobs=logprobs.prompt,
        grammar=grammar_of(body, text.tool_format, text.marks),
    )


def settings_of_choice(settings: SamplingSettings, index: int) -> SamplingSettings:
    """The same request's settings for its choice `index`: choice 0 has the request's own seed,
    choice i the first 63 bits of blake2b(seed, i). So a seed repeats all n choices, each choice
    differs, and the first of n is the answer to the same request with n=1."""
    if index == 0:
        return settings
    material = settings.seed.to_bytes(8, "little", signed=True) + index.to_bytes(4, "little")
    digest = hashlib.blake2b(material, digest_size=8, person=b"shoal-choice").digest()
    return replace(settings, seed=int.from_bytes(digest, "little") >> (64 - _SEED_BITS))


def window_tokens(num_prompt: int, wanted: int | None, model: ModelInfo, param: str) -> int:
    """How many tokens may be generated: at most `wanted`, and what the window leaves.

    Raises: ContextLengthError when the prompt alone leaves no room for a token.
    """
    room = model.max_model_len - num_prompt
    if room < 1:
        raise ContextLengthError(num_prompt, model.max_model_len, param)
    return room if wanted is None else min(wanted, room)


def check_max_tokens(value: int | None, model: ModelInfo, param: str) -> None:
    if value is not None and value > model.max_model_len:
        raise InvalidRequestError(
            f"{param}={value} is more than this model's maximum context length of "
            f"{model.max_model_len} tokens.",
            param=param,
        )


def check_logprobs(value: int | None, limit: int, param: str) -> int | None:
    if value is not None and value > limit:
        raise InvalidRequestError(
            f"{param} asks for {value} alternatives a token, but the maximum is {limit}.",
            param=param,
        )
    return value


def check_prompt_ids(ids: list[int], model: ModelInfo, param: str = "prompt") -> None:
    _check_ids(ids, model, param)


def truncate(
    ids: list[int],
    limit: int | None,
    model: ModelInfo,
    side: Literal["left", "right"] | None = "left",
) -> list[int]:
    """The last `limit` ids, the first where the right `side` is to be cut off; -1: as many as the
    window takes with one token to generate."""
    if limit is None:
        return ids
    if limit > model.max_model_len:
        raise InvalidRequestError(
            f"truncate_prompt_tokens={limit} is more than this model's maximum context length of "
            f"{model.max_model_len} tokens.",
            param="truncate_prompt_tokens",
        )
    limit = model.max_model_len - 1 if limit == -1 else limit
    if limit == 0:
        raise InvalidRequestError(
            "truncate_prompt_tokens must leave at least one token, got 0.",
            param="truncate_prompt_tokens",
        )
    return ids[:limit] if side == "right" else ids[-limit:]


def _first(given: T | None, default: T | None, neutral: T) -> T:
    if given is not None:
        return given
    return neutral if default is None else default


def _seed(given: int | None) -> int:
    """-1 means "none" to many clients, as it does in vLLM."""
    return secrets.randbits(_SEED_BITS) if given is None or given == -1 else given


def _check_ids(ids: Collection[int], model: ModelInfo, param: str) -> None:
    if ids and (min(ids) < 0 or max(ids) >= model.vocab_size):
        wrong = next(id_ for id_ in ids if not 0 <= id_ < model.vocab_size)
        raise InvalidRequestError(
            f"{param} contains the token id {wrong}, which is out of vocabulary "
            f"(0 to {model.vocab_size - 1}).",
            param=param,
        )


def _known_ids(ids: Iterable[int], model: ModelInfo, param: str) -> tuple[int, ...]:
    """Each once: every choice carries them, so a list must not be longer than the vocabulary."""
    known = tuple(dict.fromkeys(ids))
    _check_ids(known, model, param)
    return known


def _allowed_ids(ids: list[int] | None, model: ModelInfo) -> tuple[int, ...]:
    if ids is not None and not ids:
        raise InvalidRequestError("allowed_token_ids cannot be empty.", param="allowed_token_ids")
    return _known_ids(ids or (), model, "allowed_token_ids")


def _logit_bias(bias: dict[str, float], model: ModelInfo) -> tuple[tuple[int, float], ...]:
    try:
        parsed = {int(key): value for key, value in bias.items()}
    except ValueError:
        raise InvalidRequestError(
            "logit_bias must have token ids as keys.", param="logit_bias"
        ) from None
    _check_ids(parsed, model, "logit_bias")
    return tuple(
        (id_, max(-_MAX_LOGIT_BIAS, min(_MAX_LOGIT_BIAS, value))) for id_, value in parsed.items()
    )


def _bad_words(words: list[str], tokenizer: TextTokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written at a text's start and behind a space: two token sequences."""
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        if not bare:
            raise InvalidRequestError("bad_words cannot contain an empty word.", param="bad_words")
        for form in (bare, " " + bare):
            ids = tokenizer.encode(form, add_special_tokens=False, param="bad_words")
            sequences[tuple(ids)] = None
    if len(sequences) > _MAX_BAD_WORDS:
        raise InvalidRequestError(
            f"bad_words come to {len(sequences)} token sequences; at most {_MAX_BAD_WORDS} are "
            "allowed.",
            param="bad_words",
        )
    return tuple(sequences)
