"""The engine's gate: a NewRequest that passes can be computed. Called in the engine thread at each
submit.

The gateway checks the same rules for friendlier answers; this check is the one that protects the
engine.
"""

import math
from collections.abc import Sequence

from worker.config import EngineConfig
from worker.engine.kv_footprint import KVFootprint
from worker.engine.request import NewRequest
from worker.engine.sampling_params import SamplingParams
from worker.errors import InvalidRequest

_MAX_SEED = 2**63


def validate(new: NewRequest, config: EngineConfig) -> None:
    """Raises: InvalidRequest naming the field and the limit."""
    _check_prompt(new, config)
    _check_sampling(new.sampling)
    _check_vocabulary(new.sampling, config.vocab_size)
    for field, count in (
        ("logprobs", new.sampling.logprobs),
        ("prompt_logprobs", new.sampling.prompt_logprobs),
    ):
        if count is not None:
            _check_range(field, count, 0, config.max_logprobs)


def max_total_tokens(new: NewRequest, config: EngineConfig) -> int:
    """Prompt and output together, clipped to the model's length and to what a sequence can have
    with the whole pool.
    """
    wanted = len(new.prompt_token_ids) + new.sampling.max_tokens
    return min(wanted, _capacity(config))


def _capacity(config: EngineConfig) -> int:
    """Tokens of a sequence that has the whole pool, up to the model's length."""
    footprint = KVFootprint(config.block_size, config.windows)
    return footprint.longest(config.num_blocks, config.max_model_len)


def _check_prompt(new: NewRequest, config: EngineConfig) -> None:
    if not new.prompt_token_ids:
        raise InvalidRequest("the prompt must hold at least one token", "prompt")
    _check_ids("prompt", new.prompt_token_ids, config.vocab_size)
    _check_ids("emitted_token_ids", new.emitted_token_ids, config.vocab_size)
    num_tokens, limit = len(new.prompt_token_ids), config.max_model_len
    if num_tokens >= limit:
        raise InvalidRequest(
            f"Input tokens exceed the configured limit of {limit} tokens. Your prompt resulted in "
            f"{num_tokens} tokens. This model's maximum context length is {limit} tokens, and at "
            "least one must be left for the output. Please reduce the length of the prompt.",
            "prompt",
        )
    capacity = _capacity(config)
    if capacity < limit and num_tokens + len(new.emitted_token_ids) >= capacity:
        raise InvalidRequest(
            f"Your prompt resulted in {num_tokens + len(new.emitted_token_ids)} tokens, but the KV "
            f"cache of this replica holds {capacity}. Please reduce the length of the prompt.",
            "prompt",
        )


def _check_sampling(sampling: SamplingParams) -> None:
    if sampling.max_tokens < 1:
        raise InvalidRequest(
            f"max_tokens must be at least 1, got {sampling.max_tokens}", "max_tokens"
        )
    _check_range("temperature", sampling.temperature, 0.0, math.inf)
    _check_range("top_p", sampling.top_p, 0.0, 1.0, is_low_excluded=True)
    _check_range("top_k", sampling.top_k, -1, math.inf)
    _check_range("min_p", sampling.min_p, 0.0, 1.0)
    _check_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _check_range(
        "repetition_penalty", sampling.repetition_penalty, 0.0, math.inf, is_low_excluded=True
    )
    _check_range("seed", sampling.seed, -_MAX_SEED, _MAX_SEED - 1)
    _check_range("min_tokens", sampling.min_tokens, 0, sampling.max_tokens)
    for _, bias in sampling.logit_bias:
        if not math.isfinite(bias):
            raise InvalidRequest(f"logit_bias must be finite, got {bias}", "logit_bias")
    if sampling.grammar is not None and sampling.grammar.kind == "unknown":
        raise InvalidRequest("grammar is of a kind that this version does not know", "grammar")
    if not all(sampling.bad_words):
        raise InvalidRequest("bad_words must not hold an empty sequence", "bad_words")


def _check_vocabulary(sampling: SamplingParams, vocab_size: int) -> None:
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    _check_ids("logit_bias", [token_id for token_id, _ in sampling.logit_bias], vocab_size)
    for word in sampling.bad_words:
        _check_ids("bad_words", word, vocab_size)


def _check_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    # min and max run in C: a long prompt costs microseconds per thousand ids.
    if not token_ids:
        return
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"{field}: token id {token_id} is out of vocabulary; the model accepts 0 to "
                f"{vocab_size - 1}",
                field,
            )


def _check_range(
    field: str, value: float, low: float, high: float, is_low_excluded: bool = False
) -> None:
    is_above_low = low < value if is_low_excluded else low <= value
    if not (is_above_low and value <= high and math.isfinite(value)):
        bracket = "(" if is_low_excluded else "["
        raise InvalidRequest(f"{field} must be in {bracket}{low:g}, {high:g}], got {value}", field)
