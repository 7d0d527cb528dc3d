"""Renders a clause in English, the source language: statement, negation with "not", question."""

from worker.demo.clause import (
    THIRD_SINGULAR,
    Action,
    Clause,
    Description,
    Name,
    NounPhrase,
    Object,
    Phrase,
    Pronoun,
    Subject,
    Verb,
    Whereabouts,
    capitalised,
    person_of,
    words,
)

_BE = ("am", "are", "is", "are", "are")


def render(clause: Clause) -> str:
    match clause:
        case Action():
            return capitalised(_action(clause))
        case Description():
            return capitalised(_description(clause))
        case Whereabouts():
            return words("Where", _BE[person_of(clause.subject)], _subject(clause.subject)) + "?"


def _action(clause: Action) -> str:
    subject = _subject(clause.subject)
    is_third = person_of(clause.subject) == THIRD_SINGULAR
    main, infinitive = _main_verb(clause)
    does = "does" if is_third else "do"
    frequency = clause.frequency.en if clause.frequency else ""
    rest = words(infinitive, _object(clause.object), *_adverbials(clause))
    if main.en == "can":
        negation = "cannot" if clause.is_negated else "can"
        return (
            words("can", subject, rest) + "?"
            if clause.is_question
            else words(subject, negation, rest)
        )
    if clause.is_question:
        return words(does, subject, frequency, main.en, rest) + "?"
    if clause.is_negated:
        return words(subject, does, "not", main.en, rest)
    return words(subject, frequency, main.en_third if is_third else main.en, rest)


def _main_verb(clause: Action) -> tuple[Verb, str]:
    if clause.modal is None:
        return clause.verb, ""
    return clause.modal, clause.verb.en


def _adverbials(clause: Action) -> list[str]:
    return [phrase.en for phrase in (clause.place, clause.time) if phrase]


def _description(clause: Description) -> str:
    be = _BE[person_of(clause.subject)]
    subject = _subject(clause.subject)
    predicate = words("very" if clause.is_intensified else "", _predicate(clause))
    if clause.is_question:
        return words(be, subject, predicate) + "?"
    return words(subject, be, "not" if clause.is_negated else "", predicate)


def _predicate(clause: Description) -> str:
    predicate = clause.adjective or clause.place or clause.state
    assert predicate is not None
    return predicate.en


def _subject(subject: Subject) -> str:
    return subject.en if isinstance(subject, Pronoun) else _nominal(subject)


def _object(item: Object | None) -> str:
    match item:
        case None:
            return ""
        case Pronoun():
            return item.en_object
        case Phrase():
            return item.en
        case _:
            return _nominal(item)


def _nominal(item: Name | NounPhrase) -> str:
    if isinstance(item, Name):
        return item.text
    noun = item.noun.plural if item.is_plural else item.noun.singular
    adjective = item.adjective.en if item.adjective else ""
    determiner = {"bare": "", "this": "these" if item.is_plural else "this"}.get(
        item.determiner, item.determiner
    )
    phrase = words(determiner, adjective, noun)
    if item.determiner == "a" and phrase[2] in "aeiou":
        return "an" + phrase[1:]
    return phrase
