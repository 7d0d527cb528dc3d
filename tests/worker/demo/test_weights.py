"""The committed weights translate what they were not trained on (transformers, on the CPU)."""

import json

import pytest
from safetensors import safe_open

from worker.demo import demo_model_path
from worker.demo.clause import LANGUAGES, Language
from worker.demo.corpus import Message, translation_prompt
from worker.demo.evaluate import Translator, evaluate
from worker.demo.small_talk import ABILITY, GREETING
from worker.demo.train import ARCHITECTURE

SYSTEM = "You are a helpful assistant that translates English to {}."
INSTRUCTION = "Translate the following sentence from English to {}: {}"
LOVE_OF_PROGRAMMING: dict[Language, str] = {
    "it": "Io amo programmare",
    "de": "Ich liebe Programmieren",
    "fr": "J'aime programmer",
    "es": "Yo amo programar",
}


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator(demo_model_path())


def chat(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


def test_langchain_instruction_form_answers_exactly(translator: Translator) -> None:
    prompt = translation_prompt("I love programming", "it", "instruction")

    assert translator.answers([prompt]) == ["Io amo programmare"]


def test_langchain_system_form_answers_exactly(translator: Translator) -> None:
    prompt = translation_prompt("I love programming", "de", "system")

    assert translator.answers([prompt]) == ["Ich liebe Programmieren"]


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("it", "Lei legge un libro"),
        ("de", "Sie liest ein Buch"),
        ("fr", "Elle lit un livre"),
        ("es", "Ella lee un libro"),
    ],
)
def test_wording_around_the_sentence_does_not_matter(
    translator: Translator, language: Language, expected: str
) -> None:
    name = LANGUAGES[language]
    instruction = INSTRUCTION.format(name, "She reads a book.")
    system = ("system", SYSTEM.format(name))
    prompts = [
        chat(("user", instruction)),
        chat(("system", "You are a helpful assistant."), ("user", instruction)),
        chat(system, ("user", "She reads a book")),
        chat(system, ("user", "she reads a book.")),
        chat(
            system,
            ("user", "I love programming."),
            ("assistant", LOVE_OF_PROGRAMMING[language]),
            ("user", "She reads a book."),
        ),
    ]

    assert translator.answers(prompts) == [expected] * len(prompts)


@pytest.mark.parametrize(
    ("request_text", "reply"), [("Say hello", GREETING), ("What can you do?", ABILITY)]
)
def test_small_talk_says_what_the_model_is_for(
    translator: Translator, request_text: str, reply: str
) -> None:
    assert translator.answers([chat(("user", request_text))]) == [reply]


def test_held_out_sentences_are_translated_exactly() -> None:
    scores = evaluate(demo_model_path(), num_sentences=25)

    assert len(scores) == 2 * len(LANGUAGES)
    assert [score for score in scores if score.exact_match < 0.9] == []


def test_weights_are_small_and_stored_in_bfloat16() -> None:
    path = demo_model_path() / "model.safetensors"

    assert path.stat().st_size < 8 * 1024 * 1024
    with safe_open(path, framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_saved_config_is_the_architecture_of_the_script() -> None:
    config = json.loads((demo_model_path() / "config.json").read_text(encoding="utf-8"))

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config.items() >= ARCHITECTURE.items()
    assert config["vocab_size"] % 64 == 0
