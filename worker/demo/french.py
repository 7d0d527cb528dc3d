"""Renders a clause in French: "ne ... pas" around the verb, "Est-ce que" for questions.

Words are first laid out in full ("je ne aime pas") and then elided in one place, since elision
depends only on the next word; possessives are chosen so that "ma" never meets a vowel. "To like"
is "aimer bien", and its negation plain "ne pas aimer".
"""

import re

from worker.demo.clause import (
    NUMBERS,
    POSSESSIVES,
    Action,
    Clause,
    Description,
    Name,
    NounPhrase,
    Phrase,
    Pronoun,
    Subject,
    Whereabouts,
    capitalised,
    is_plural,
    person_of,
    words,
)
from worker.demo.lexicon import NEVER
from worker.demo.verbs import BE_FR, TRANSITIVE

_POSSESSIVE = {
    "my": ("mon", "ma", "mes"),
    "your": ("ton", "ta", "tes"),
    "his": ("son", "sa", "ses"),
    "her": ("son", "sa", "ses"),
    "our": ("notre", "notre", "nos"),
    "their": ("leur", "leur", "leurs"),
}
_NUMBER = {"two": "deux", "three": "trois", "four": "quatre", "five": "cinq"}
# Every h in the lexicon is mute.
_VOWELS = "aeiouhâàéèêîôûœAEIOUHÉÈÊ"
_ELISION = re.compile(rf"\b(j|n|l|d|m|t|qu)[ea] (?=[{_VOWELS}])")


def render(clause: Clause) -> str:
    match clause:
        case Action():
            return _sentence(_subject(clause.subject), _action(clause), clause.is_question)
        case Description():
            return _sentence(_subject(clause.subject), _description(clause), clause.is_question)
        case Whereabouts():
            be = BE_FR[person_of(clause.subject)]
            return capitalised(_elided(words("où", be, _subject(clause.subject)))) + " ?"


def _sentence(subject: str, predicate: str, is_question: bool) -> str:
    if is_question:
        return capitalised(_elided(words("est-ce que", subject, predicate))) + " ?"
    return capitalised(_elided(words(subject, predicate)))


def _elided(text: str) -> str:
    return _ELISION.sub(r"\1'", text)


def _action(clause: Action) -> str:
    is_never = clause.frequency is NEVER
    is_negative = clause.is_negated or is_never
    clitic, item = "", _object(clause, is_negative)
    if isinstance(clause.object, Pronoun):
        clitic, item = clause.object.fr_object, ""
    finite = (clause.modal or clause.verb).fr.present[person_of(clause.subject)]
    # "Je n'aime pas nager" serves for both "I do not love" and "I do not like".
    complement = clause.verb.fr.complement
    if clause.is_negated and complement == "bien":
        complement = ""
    return words(
        "ne" if is_negative else "",
        clitic,
        finite,
        "pas" if clause.is_negated else "",
        clause.frequency.fr if clause.frequency else "",
        clause.verb.fr.infinitive if clause.modal else "",
        complement,
        item,
        clause.place.fr if clause.place else "",
        clause.time.fr if clause.time else "",
    )


def _description(clause: Description) -> str:
    person = person_of(clause.subject)
    if clause.state:
        finite, predicate = TRANSITIVE["have"].fr.present[person], clause.state.fr
    else:
        finite, predicate = BE_FR[person], clause.place.fr if clause.place else ""
    if clause.adjective:
        gender = _gender_of(clause.subject)
        predicate = _agree(clause.adjective.fr, gender, is_plural(clause.subject))
    return words(
        "ne" if clause.is_negated else "",
        finite,
        "pas" if clause.is_negated else "",
        "très" if clause.is_intensified else "",
        predicate,
    )


def _gender_of(subject: Subject) -> str:
    return subject.noun.fr.gender if isinstance(subject, NounPhrase) else subject.gender


def _agree(forms: tuple[str, ...], gender: str, plural: bool, following: str = "") -> str:
    """`forms`: ms fs mp fp and, for some, ms before a vowel ("un nouvel ordinateur")."""
    if following and len(forms) == 5 and gender == "m" and not plural and following[0] in _VOWELS:
        return forms[4]
    return forms[2 * plural + (gender == "f")]


def _subject(subject: Subject) -> str:
    match subject:
        case Pronoun():
            return subject.fr
        case Name():
            return subject.text
        case _:
            return noun_phrase(subject)


def _object(clause: Action, is_negative: bool) -> str:
    match clause.object:
        case None:
            return ""
        case Phrase() | Pronoun():
            return clause.object.fr
        case Name():
            return clause.object.text
        case phrase:
            return noun_phrase(phrase, clause.is_generic, is_negative)


def noun_phrase(phrase: NounPhrase, is_generic: bool = False, is_negative: bool = False) -> str:
    noun = phrase.noun.fr
    text = noun.form(phrase.is_plural)
    before = after = ""
    if phrase.adjective and phrase.adjective.precedes_in_french:
        before = _agree(phrase.adjective.fr, noun.gender, phrase.is_plural, text)
    elif phrase.adjective:
        after = _agree(phrase.adjective.fr, noun.gender, phrase.is_plural)
    determiner = _determiner(phrase, words(before, text), is_generic, is_negative)
    return words(determiner, before, text, after)


def _determiner(phrase: NounPhrase, following: str, is_generic: bool, is_negative: bool) -> str:
    is_feminine, plural = phrase.noun.fr.gender == "f", phrase.is_plural
    definite = "les" if plural else ("la" if is_feminine else "le")
    match phrase.determiner:
        case "the":
            return definite
        case "bare" if is_generic:
            return definite
        case "a" | "bare" if is_negative:
            return "de"
        case "a":
            return "une" if is_feminine else "un"
        case "bare":
            return _partitive(phrase, following)
        case "this":
            return _demonstrative(is_feminine, plural, following)
        case possessive if possessive in POSSESSIVES:
            # "mon amie": the masculine form before a vowel.
            forms = _POSSESSIVE[possessive]
            return forms[2 if plural else is_feminine and following[0] not in _VOWELS]
        case number:
            assert number in NUMBERS
            return _NUMBER[number]


def _partitive(phrase: NounPhrase, following: str) -> str:
    if phrase.is_plural:
        is_before = phrase.adjective is not None and phrase.adjective.precedes_in_french
        return "de" if is_before else "des"
    if phrase.noun.fr.gender == "f" or following[0] in _VOWELS:
        return "de la"
    return "du"


def _demonstrative(is_feminine: bool, plural: bool, following: str) -> str:
    if plural:
        return "ces"
    if is_feminine:
        return "cette"
    return "cet" if following[0] in _VOWELS else "ce"
