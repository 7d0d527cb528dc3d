"""Chats made from grammar sentences, and the split that keeps test sentences out of training.

A sentence is held out by the hash of its English text, so it is unseen in every language, every
wording and every earlier turn. `sample_chat` draws training chats; `translation_prompt` builds
the two prompts that are evaluated.
"""

from collections.abc import Iterator
from hashlib import blake2b
from random import Random
from typing import Literal, TypedDict

from worker.demo.clause import LANGUAGES, Language
from worker.demo.grammar import Sentence, sample_sentence
from worker.demo.small_talk import GREETINGS, REPLIES, WHICH_LANGUAGE

HELD_OUT_PERCENT = 5


class Message(TypedDict):
    role: str
    content: str


PromptForm = Literal["instruction", "system"]

_SYSTEM = "You are a helpful assistant that translates English to {language}."
_OTHER_SYSTEMS = (
    f"{_SYSTEM} Translate the user sentence.",
    "You are a helpful assistant that translates English into {language}.",
    "You are a helpful translator. Translate the user sentence to {language}.",
    "You translate English to {language}.",
    "Translate English to {language}.",
    "Translate to {language}.",
)
_INSTRUCTION = "Translate the following sentence from English to {language}: {sentence}"
_OTHER_INSTRUCTIONS = (
    "Translate the following sentence into {language}: {sentence}",
    "Translate from English to {language}: {sentence}",
    "Translate this sentence to {language}: {sentence}",
    "Translate to {language}: {sentence}",
    "Translate into {language}: {sentence}",
    "Please translate to {language}: {sentence}",
    'How do you say "{sentence}" in {language}?',
    'Translate "{sentence}" to {language}',
)
_GENERIC_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are an assistant.",
    "You are a helpful, honest assistant.",
    "Answer briefly.",
)
_CONTRACTIONS = (
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("is not", "isn't"),
    ("are not", "aren't"),
    ("cannot", "can't"),
    ("I am", "I'm"),
)


def is_held_out(english: str) -> bool:
    """The same for a sentence with or without its full stop, whatever the first letter's case."""
    digest = blake2b(english.rstrip(".").lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 100 < HELD_OUT_PERCENT


def training_sentence(rng: Random) -> Sentence:
    while is_held_out((sentence := sample_sentence(rng)).english):
        pass
    return sentence


def held_out_sentences(count: int, seed: int) -> list[Sentence]:
    """`count` different sentences that no training chat contains."""
    rng = Random(seed)
    sentences: dict[str, Sentence] = {}
    while len(sentences) < count:
        sentence = sample_sentence(rng)
        if is_held_out(sentence.english):
            sentences[sentence.english] = sentence
    return list(sentences.values())


def translation_prompt(english: str, language: Language, form: PromptForm) -> list[Message]:
    """A request as a user writes it: a system message and a sentence with its full stop."""
    name = LANGUAGES[language]
    text = english if english.endswith("?") else english + "."
    if form == "instruction":
        text = _INSTRUCTION.format(language=name, sentence=text)
    return [_message("system", _SYSTEM.format(language=name)), _message("user", text)]


def sample_chats(seed: int) -> Iterator[list[Message]]:
    rng = Random(seed)
    while True:
        yield sample_chat(rng)


def sample_chat(rng: Random) -> list[Message]:
    draw = rng.random()
    if draw < 0.46:
        return _system_chat(rng)
    if draw < 0.95:
        return _instruction_chat(rng)
    return _small_talk_chat(rng)


def _system_chat(rng: Random) -> list[Message]:
    """The system message names the language and every turn is a sentence."""
    language = rng.choice(list(LANGUAGES))
    chat = [_language_system(rng, language)]
    for _ in range(_num_turns(rng)):
        english, translation = _pair(rng, language)
        chat += [_message("user", english), _message("assistant", translation)]
    return chat


def _instruction_chat(rng: Random) -> list[Message]:
    """Every turn names its language, whatever the system message says."""
    chat: list[Message] = []
    language = rng.choice(list(LANGUAGES))
    draw = rng.random()
    if draw < 0.5:
        chat.append(_language_system(rng, language))
    elif draw < 0.7:
        chat.append(_message("system", rng.choice(_GENERIC_SYSTEMS)))
    for _ in range(_num_turns(rng)):
        if draw < 0.1 or rng.random() < 0.1:
            language = rng.choice(list(LANGUAGES))
        english, translation = _pair(rng, language)
        text = _instruction(rng).format(language=LANGUAGES[language], sentence=english)
        chat += [_message("user", text), _message("assistant", translation)]
    return chat


def _small_talk_chat(rng: Random) -> list[Message]:
    chat = []
    if rng.random() < 0.5:
        chat.append(_message("system", rng.choice(_GENERIC_SYSTEMS)))
    if rng.random() < 0.3:
        request, reply = _surface(rng, training_sentence(rng).english), WHICH_LANGUAGE
    else:
        request = rng.choice(list(REPLIES))
        reply = REPLIES[request]
    return [*chat, _message("user", request), _message("assistant", reply)]


def _language_system(rng: Random, language: Language) -> Message:
    template = _SYSTEM if rng.random() < 0.75 else rng.choice(_OTHER_SYSTEMS)
    return _message("system", template.format(language=LANGUAGES[language]))


def _instruction(rng: Random) -> str:
    return _INSTRUCTION if rng.random() < 0.6 else rng.choice(_OTHER_INSTRUCTIONS)


def _num_turns(rng: Random) -> int:
    draw = rng.random()
    if draw < 0.85:
        return 1
    return rng.choice((2, 2, 3)) if draw < 0.985 else rng.randint(4, 8)


def _pair(rng: Random, language: Language) -> tuple[str, str]:
    if rng.random() < 0.025:
        greeting = rng.choice(GREETINGS)
        return greeting.en, str(getattr(greeting, language))
    sentence = training_sentence(rng)
    return _surface(rng, sentence.english), sentence.translations[language]


def _surface(rng: Random, english: str) -> str:
    """The same sentence as people type it: contracted, uncapitalised, without a full stop."""
    if rng.random() < 0.25:
        for full, contracted in _CONTRACTIONS:
            english = english.replace(full, contracted)
    if rng.random() < 0.15:
        english = english[0].lower() + english[1:]
    if not english.endswith("?") and rng.random() < 0.65:
        english += "."
    return english


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
