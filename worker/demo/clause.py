"""What a sentence means before it is put into words: the types shared by all five languages.

A `Clause` is language-neutral. `grammar.py` makes clauses, and one renderer per language
(`english.py`, `italian.py`, ...) turns the same clause into exactly one sentence.
"""

from dataclasses import dataclass
from typing import Literal

Language = Literal["it", "de", "fr", "es"]
LANGUAGES: dict[Language, str] = {
    "it": "Italian",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
}

# "you" is always singular and informal, so that every English sentence has one rendering
# and verbs need five forms only, in this order.
FIRST_SINGULAR, SECOND_SINGULAR, THIRD_SINGULAR, FIRST_PLURAL, THIRD_PLURAL = range(5)

Determiner = Literal[
    "bare", "a", "the", "this", "my", "your", "his", "her", "our", "their",
    "two", "three", "four", "five",
]  # fmt: skip
POSSESSIVES: tuple[Determiner, ...] = ("my", "your", "his", "her", "our", "their")
NUMBERS: tuple[Determiner, ...] = ("two", "three", "four", "five")


@dataclass(frozen=True, slots=True)
class NounForms:
    """A noun in one language; `accusative` differs from `singular` for some German nouns."""

    singular: str
    plural: str
    gender: str  # "m", "f" or "n"
    accusative: str

    def form(self, is_plural: bool) -> str:
        return self.plural if is_plural else self.singular


@dataclass(frozen=True, slots=True)
class Noun:
    singular: str
    plural: str
    kind: str
    it: NounForms
    de: NounForms
    fr: NounForms
    es: NounForms


@dataclass(frozen=True, slots=True)
class Adjective:
    """Agreement forms as the renderer of each language orders them (see `lexicon.py`)."""

    en: str
    it: tuple[str, ...]
    de: str
    fr: tuple[str, ...]
    es: tuple[str, ...]
    is_temporary: bool = False  # Spanish says it with "estar"
    precedes_in_french: bool = False


@dataclass(frozen=True, slots=True)
class VerbForms:
    """One language's present tense; `complement` is a fixed phrase after the verb."""

    infinitive: str
    present: tuple[str, ...]
    complement: str = ""


@dataclass(frozen=True, slots=True)
class Verb:
    en: str
    en_third: str
    it: VerbForms
    de: VerbForms
    fr: VerbForms
    es: VerbForms


@dataclass(frozen=True, slots=True)
class Phrase:
    """An adverbial, gerund or state that is one fixed string in each language."""

    en: str
    it: str
    de: str
    fr: str
    es: str


@dataclass(frozen=True, slots=True)
class Pronoun:
    en: str
    en_object: str
    person: int
    gender: str
    it: str
    de: str
    fr: str
    es: str
    it_object: str
    de_object: str
    fr_object: str
    es_object: str


@dataclass(frozen=True, slots=True)
class Name:
    text: str
    gender: str


@dataclass(frozen=True, slots=True)
class NounPhrase:
    determiner: Determiner
    noun: Noun
    is_plural: bool = False
    adjective: Adjective | None = None


Subject = Pronoun | Name | NounPhrase
Object = Pronoun | Name | NounPhrase | Phrase  # a Phrase here is a gerund


@dataclass(frozen=True, slots=True)
class Action:
    """Subject and full verb. `is_generic`: a bare object means the whole class ("I love cats")."""

    subject: Subject
    verb: Verb
    object: Object | None = None
    modal: Verb | None = None
    place: Phrase | None = None
    time: Phrase | None = None
    frequency: Phrase | None = None
    is_generic: bool = False
    is_negated: bool = False
    is_question: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """Subject and "to be": an adjective, a place, or a state such as "hungry"."""

    subject: Subject
    adjective: Adjective | None = None
    place: Phrase | None = None
    state: Phrase | None = None
    is_intensified: bool = False
    is_negated: bool = False
    is_question: bool = False


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """ "Where is ...?" """

    subject: NounPhrase | Name


Clause = Action | Description | Whereabouts


def person_of(subject: Subject) -> int:
    match subject:
        case Pronoun():
            return subject.person
        case NounPhrase(is_plural=True):
            return THIRD_PLURAL
        case _:
            return THIRD_SINGULAR


def is_plural(subject: Subject) -> bool:
    return person_of(subject) in (FIRST_PLURAL, THIRD_PLURAL)


def words(*parts: str) -> str:
    """The non-empty parts with spaces between, none after an apostrophe."""
    return " ".join(part for part in parts if part).replace("' ", "'")


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
