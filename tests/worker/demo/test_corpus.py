"""The split: no held-out sentence reaches training, in any wording, language or earlier turn."""

from itertools import islice

import pytest

from worker.demo.corpus import (
    held_out_sentences,
    is_held_out,
    sample_chats,
    translation_prompt,
)


def test_held_out_sentences_never_occur_in_training_chats() -> None:
    held_out = [sentence.english for sentence in held_out_sentences(300, seed=1)]
    training = "\n".join(
        message["content"].lower() for chat in islice(sample_chats(2), 5_000) for message in chat
    )
    lines = set(training.replace(".", "").replace(": ", "\n").split("\n"))

    assert not [english for english in held_out if english.lower() in lines]


@pytest.mark.parametrize("spelling", ["They love dancing.", "they love dancing"])
def test_spelling_does_not_change_the_side_of_the_split(spelling: str) -> None:
    assert is_held_out(spelling) == is_held_out("They love dancing")


def test_about_one_sentence_in_twenty_is_held_out() -> None:
    share = sum(is_held_out(f"sentence {i}") for i in range(10_000)) / 10_000

    assert 0.04 < share < 0.06


def test_held_out_sentences_are_distinct_and_reproducible() -> None:
    first, second = held_out_sentences(50, seed=3), held_out_sentences(50, seed=3)

    assert first == second
    assert len({sentence.english for sentence in first}) == 50


def test_chats_alternate_and_end_with_an_answer() -> None:
    for chat in islice(sample_chats(4), 1_000):
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles


def test_instruction_prompt_is_the_one_of_the_langchain_page() -> None:
    system, user = translation_prompt("I love programming", "it", "instruction")

    assert system["content"] == "You are a helpful assistant that translates English to Italian."
    assert user["content"] == (
        "Translate the following sentence from English to Italian: I love programming."
    )


def test_system_prompt_leaves_the_sentence_alone() -> None:
    _, user = translation_prompt("I love programming", "de", "system")

    assert user["content"] == "I love programming."
