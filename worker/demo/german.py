"""Renders a clause in German.

Order of the main clause: subject, finite verb, object pronoun, time, noun object, "nicht", fixed
complement, place, infinitive. An indefinite object is negated with "kein". A question starts with
the finite verb. Nouns after the English gerund are nominalised infinitives: "Ich liebe Lesen".
"""

from worker.demo.clause import (
    NUMBERS,
    Action,
    Adjective,
    Clause,
    Description,
    Name,
    NounPhrase,
    Object,
    Phrase,
    Pronoun,
    Subject,
    Whereabouts,
    capitalised,
    person_of,
    words,
)
from worker.demo.verbs import BE_DE, TRANSITIVE

_NOMINATIVE, _ACCUSATIVE = "nominative", "accusative"
_PLURAL = "plural"

_THE = {"m": "der", "f": "die", "n": "das", _PLURAL: "die"}
_THIS = {"m": "dieser", "f": "diese", "n": "dieses", _PLURAL: "diese"}
_EIN_ENDINGS = {"m": "", "f": "e", "n": "", _PLURAL: "e"}
_EIN_STEMS = {
    "a": "ein",
    "my": "mein",
    "your": "dein",
    "his": "sein",
    "her": "ihr",
    "our": "unser",
    "their": "ihr",
}
_NUMBER = {"two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}

# Adjective endings after "der", after "ein" and without an article; accusative masculine is -en.
_WEAK = {"m": "e", "f": "e", "n": "e", _PLURAL: "en"}
_MIXED = {"m": "er", "f": "e", "n": "es", _PLURAL: "en"}
_STRONG = {"m": "er", "f": "e", "n": "es", _PLURAL: "e"}


def render(clause: Clause) -> str:
    match clause:
        case Action():
            return _sentence(_action(clause), clause.is_question)
        case Description():
            return _sentence(_description(clause), clause.is_question)
        case Whereabouts():
            be = BE_DE[person_of(clause.subject)]
            return _sentence(words("wo", be, _subject(clause.subject)), is_question=True)


def _sentence(text: str, is_question: bool) -> str:
    return capitalised(text) + ("?" if is_question else "")


def _action(clause: Action) -> str:
    finite = (clause.modal or clause.verb).de.present[person_of(clause.subject)]
    takes_kein = clause.is_negated and _is_indefinite(clause)
    noun_object = _object(clause.object, takes_kein)
    pronoun_object = ""
    if isinstance(clause.object, Pronoun):
        noun_object, pronoun_object = "", clause.object.de_object
    return words(
        *_opening(_subject(clause.subject), finite, clause.is_question),
        pronoun_object,
        clause.frequency.de if clause.frequency else "",
        clause.time.de if clause.time else "",
        noun_object,
        "nicht" if clause.is_negated and not takes_kein else "",
        clause.verb.de.complement,
        clause.place.de if clause.place else "",
        clause.verb.de.infinitive if clause.modal else "",
    )


def _opening(subject: str, finite: str, is_question: bool) -> tuple[str, str]:
    return (finite, subject) if is_question else (subject, finite)


def _is_indefinite(clause: Action) -> bool:
    if clause.is_generic or not isinstance(clause.object, NounPhrase):
        return False
    return clause.object.determiner in ("a", "bare")


def _description(clause: Description) -> str:
    person = person_of(clause.subject)
    subject = _subject(clause.subject)
    if clause.state:
        # Both states are masculine nouns.
        kein = "keinen" if clause.is_negated else ""
        finite = TRANSITIVE["have"].de.present[person]
        opening = _opening(subject, finite, clause.is_question)
        return words(*opening, kein, clause.state.de)
    predicate = clause.adjective.de if clause.adjective else ""
    return words(
        *_opening(subject, BE_DE[person], clause.is_question),
        "nicht" if clause.is_negated else "",
        "sehr" if clause.is_intensified else "",
        predicate,
        clause.place.de if clause.place else "",
    )


def _subject(subject: Subject) -> str:
    match subject:
        case Pronoun():
            return subject.de
        case Name():
            return subject.text
        case _:
            return noun_phrase(subject, _NOMINATIVE)


def _object(item: Object | None, takes_kein: bool) -> str:
    match item:
        case None:
            return ""
        case Phrase() | Pronoun():
            return item.de
        case Name():
            return item.text
        case _:
            return noun_phrase(item, _ACCUSATIVE, takes_kein)


def noun_phrase(phrase: NounPhrase, case: str, takes_kein: bool = False) -> str:
    noun = phrase.noun.de
    gender = _PLURAL if phrase.is_plural else noun.gender
    is_masculine_object = gender == "m" and case == _ACCUSATIVE
    text = noun.form(phrase.is_plural)
    if is_masculine_object:
        text = noun.accusative
    determiner = _determiner(phrase, gender, is_masculine_object, takes_kein)
    adjective = ""
    if phrase.adjective:
        endings = _adjective_endings(phrase, takes_kein)
        adjective = _inflected(phrase.adjective, endings[gender], is_masculine_object)
    return words(determiner, adjective, text)


def _determiner(
    phrase: NounPhrase, gender: str, is_masculine_object: bool, takes_kein: bool
) -> str:
    match phrase.determiner:
        case "the":
            return "den" if is_masculine_object else _THE[gender]
        case "this":
            return "diesen" if is_masculine_object else _THIS[gender]
        case "bare" if not takes_kein:
            return ""
        case number if number in NUMBERS:
            return _NUMBER[number]
        case determiner:
            stem = "kein" if takes_kein else _EIN_STEMS[determiner]
            return stem + ("en" if is_masculine_object else _EIN_ENDINGS[gender])


def _adjective_endings(phrase: NounPhrase, takes_kein: bool) -> dict[str, str]:
    match phrase.determiner:
        case "the" | "this":
            return _WEAK
        case "bare" if not takes_kein:
            return _STRONG
        case number if number in NUMBERS:
            return _STRONG
        case _:
            return _MIXED


def _inflected(adjective: Adjective, ending: str, is_masculine_object: bool) -> str:
    return adjective.de + ("en" if is_masculine_object else ending)
