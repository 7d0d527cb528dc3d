import math

import pytest

from tests.worker.engine.harness import VOCAB_SIZE, new_request
from worker.config import EngineConfig
from worker.engine.validation import max_total_tokens, validate
from worker.errors import InvalidRequest

CONFIG = EngineConfig(
    num_blocks=8,
    block_size=4,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_model_len=24,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=(),
    max_logprobs=5,
)


def test_plain_request_passes() -> None:
    validate(new_request(1, [1, 2, 3], temperature=0.0, top_k=5, logprobs=5), CONFIG)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [1, VOCAB_SIZE]}),
        ("prompt", {"prompt": [-1]}),
        ("prompt", {"prompt": [1] * 24}),
        ("emitted_token_ids", {"emitted": [VOCAB_SIZE]}),
        ("max_tokens", {"max_tokens": 0}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": math.nan}),
        ("temperature", {"temperature": math.inf}),
        ("top_p", {"top_p": 0.0}),
        ("top_p", {"top_p": 1.1}),
        ("top_k", {"top_k": -2}),
        ("min_p", {"min_p": 1.5}),
        ("presence_penalty", {"presence_penalty": 2.1}),
        ("frequency_penalty", {"frequency_penalty": -2.1}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("seed", {"seed": 2**63}),
        ("min_tokens", {"min_tokens": 5}),
        ("stop_token_ids", {"stop_token_ids": (VOCAB_SIZE,)}),
        ("allowed_token_ids", {"allowed_token_ids": (VOCAB_SIZE,)}),
        ("logit_bias", {"logit_bias": ((VOCAB_SIZE, 1.0),)}),
        ("logit_bias", {"logit_bias": ((1, math.nan),)}),
        ("bad_words", {"bad_words": ((),)}),
        ("bad_words", {"bad_words": ((1, VOCAB_SIZE),)}),
        ("logprobs", {"logprobs": 6}),
        ("prompt_logprobs", {"prompt_logprobs": 6}),
    ],
)
def test_broken_rule_names_its_field(field: str, values: dict[str, object]) -> None:
    prompt = values.pop("prompt", [1, 2, 3])
    with pytest.raises(InvalidRequest) as caught:
        validate(new_request(1, prompt, **values), CONFIG)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_too_long_prompt_is_worded_as_clients_expect() -> None:
    with pytest.raises(InvalidRequest, match="Input tokens exceed the configured limit") as caught:
        validate(new_request(1, [1] * 30), CONFIG)
    assert "maximum context length is 24 tokens" in str(caught.value)


def test_prompt_larger_than_the_pool_is_refused() -> None:
    config = EngineConfig(
        num_blocks=2,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=100,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(),
    )
    with pytest.raises(InvalidRequest, match="KV cache of this replica holds 8"):
        validate(new_request(1, [1] * 8), config)
    validate(new_request(1, [1] * 7), config)
    assert max_total_tokens(new_request(1, [1] * 7, 50), config) == 8


def test_output_is_clipped_to_the_window() -> None:
    assert max_total_tokens(new_request(1, [1] * 20, 100), CONFIG) == 24
    assert max_total_tokens(new_request(1, [1] * 20, 2), CONFIG) == 22
