import dataclasses

import pytest

from gateway.errors import ContextLengthError, InvalidRequestError
from gateway.sampling import (
    LogprobLimits,
    check_max_tokens,
    resolve_sampling,
    settings_of_choice,
    truncate,
    window_tokens,
)
from gateway.schemas.common import SamplingFields
from gateway.text.model_text import GenerationDefaults, TextModel
from gateway.tokens import SamplingSettings
from tests.gateway.fake_router import MODEL, ids_of
from tests.gateway.small_tokenizer import model_files

TEXT = TextModel.from_files(model_files())


def resolve(text: TextModel = TEXT, **fields: object) -> SamplingSettings:
    body = SamplingFields.model_validate(fields)
    return resolve_sampling(body, MODEL, text, 10, LogprobLimits(None, None))


def test_silence_means_openais_defaults():
    settings = resolve()
    assert dataclasses.replace(settings, seed=0) == SamplingSettings(max_tokens=10)


def test_ids_that_are_named_often_are_carried_once():
    settings = resolve(stop_token_ids=[7, 5, 7] * 1000, allowed_token_ids=[9, 9, 8])
    assert settings.stop_token_ids == (7, 5)
    assert settings.allowed_token_ids == (9, 8)


def test_silence_means_the_models_defaults_where_it_has_them():
    text = dataclasses.replace(
        TEXT, defaults=GenerationDefaults(0.5, 0.8, 7, repetition_penalty=1.2)
    )
    settings = resolve(text)
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.5, 0.8, 7)
    assert settings.repetition_penalty == 1.2
    assert resolve(text, temperature=0, top_k=-1).temperature == 0
    assert resolve(text, temperature=0, top_k=-1).top_k == 0


def test_a_seed_is_drawn_where_none_is_given():
    assert len({resolve().seed for _ in range(20)}) == 20
    assert len({resolve(seed=-1).seed for _ in range(20)}) == 20
    assert resolve(seed=-(2**63)).seed == -(2**63)


def test_choices_have_derived_seeds_that_repeat():
    settings = resolve(seed=42)
    seeds = [settings_of_choice(settings, index).seed for index in range(5)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 5
    assert seeds == [settings_of_choice(settings, index).seed for index in range(5)]
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_logit_bias_keys_become_ids_and_values_are_clamped():
    assert dict(resolve(logit_bias={"5": 500, "6": -3.5}).logit_bias) == {5: 100.0, 6: -3.5}


def test_bad_words_are_taken_with_and_without_a_space():
    bad = resolve(bad_words=["the"]).bad_words
    assert bad == (tuple(ids_of("the")), tuple(ids_of(" the")))


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_token_ids": [400]},
        {"stop_token_ids": [-1]},
        {"allowed_token_ids": [9999]},
        {"allowed_token_ids": []},
        {"logit_bias": {"400": 1}},
        {"logit_bias": {"x": 1}},
        {"bad_words": [" "]},
        {"bad_words": [f"word{i}" for i in range(100)]},
        {"min_tokens": 11},
    ],
)
def test_broken_rules_name_their_field(fields):
    with pytest.raises(InvalidRequestError) as caught:
        resolve(**fields)
    assert caught.value.param == next(iter(fields))


def test_the_window_clips_what_is_wanted():
    assert window_tokens(100, None, MODEL, "prompt") == 28
    assert window_tokens(100, 50, MODEL, "prompt") == 28
    assert window_tokens(100, 5, MODEL, "prompt") == 5


def test_a_prompt_without_room_for_a_token_is_too_long():
    with pytest.raises(ContextLengthError, match="maximum context length is 128 tokens"):
        window_tokens(128, 1, MODEL, "messages")


def test_more_tokens_than_the_window_are_refused():
    check_max_tokens(128, MODEL, "max_tokens")
    with pytest.raises(InvalidRequestError):
        check_max_tokens(129, MODEL, "max_tokens")


def test_truncation_keeps_the_end():
    ids = list(range(200))
    assert truncate(ids, 3, MODEL) == [197, 198, 199]
    assert truncate(ids, -1, MODEL) == ids[-127:]
    assert truncate(ids, None, MODEL) == ids
    assert truncate(ids, 3, MODEL, "right") == [0, 1, 2]
    for wrong in (0, 129):
        with pytest.raises(InvalidRequestError):
            truncate(ids, wrong, MODEL)
