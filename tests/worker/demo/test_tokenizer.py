"""The saved tokenizer: any text survives, and training saw what the chat template renders."""

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from worker.demo import demo_model_path
from worker.demo.corpus import Message, sample_chats, translation_prompt
from worker.demo.tokenizer import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    PAD,
    SPECIAL_TOKENS,
    encode_chat,
    encode_prompt,
)

BACKEND = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = PreTrainedTokenizerFast.from_pretrained(demo_model_path())
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def render(tokenizer: PreTrainedTokenizerFast, messages: Any, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(text: str) -> None:
    assert BACKEND.decode(BACKEND.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["Straße, œuf, ¿niño?", "日本語 🐟", " two  spaces \n", ""])
def test_unusual_text_round_trips(text: str) -> None:
    assert BACKEND.decode(BACKEND.encode(text).ids) == text


def test_special_tokens_come_first() -> None:
    assert [BACKEND.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_answer_of_the_langchain_page_fits_in_four_tokens() -> None:
    assert len(BACKEND.encode("Io amo programmare").ids) <= 4


def test_end_and_padding_are_known_to_transformers(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == (IM_END, PAD)
    assert END_OF_TEXT in tokenizer.get_vocab()


def test_training_encoding_equals_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    for chat in islice(sample_chats(5), 200):
        rendered = render(tokenizer, chat)
        assert BACKEND.encode(rendered).ids == encode_chat(BACKEND, chat)[0]


def test_prompt_encoding_equals_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = translation_prompt("I love programming", "it", "instruction")
    rendered = render(tokenizer, chat, add_generation_prompt=True)

    assert BACKEND.encode(rendered).ids == encode_prompt(BACKEND, chat)


def test_only_answers_are_learned() -> None:
    chat: list[Message] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Ciao"},
    ]
    token_ids, is_answer = encode_chat(BACKEND, chat)
    learned = [token_id for token_id, answer in zip(token_ids, is_answer, strict=True) if answer]

    assert BACKEND.decode(learned, skip_special_tokens=False) == f"Ciao{IM_END}"


def test_template_takes_any_roles_parts_null_content_and_tools(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "tool", "content": "d"},
        {"role": "system", "content": ""},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    rendered = render(tokenizer, messages, tools=tools, add_generation_prompt=True)
    turns = [("user", "a"), ("user", "bc"), ("assistant", ""), ("assistant", ""), ("tool", "d")]
    turns.append(("system", ""))
    expected = "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in turns)

    assert rendered == f"{expected}{IM_START}assistant\n"
