"""Draws random clauses that make sense and puts them into five languages.

`sample_sentence` is the whole interface: an English sentence and its one translation into each
language. What goes with what (a letter is read, not drunk) is decided here; how it is said is
decided by the renderers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from worker.demo import english, french, german, italian, spanish
from worker.demo.clause import (
    LANGUAGES,
    NUMBERS,
    POSSESSIVES,
    Action,
    Adjective,
    Clause,
    Description,
    Determiner,
    Language,
    Noun,
    NounPhrase,
    Object,
    Pronoun,
    Subject,
    Verb,
    Whereabouts,
)
from worker.demo.lexicon import (
    ANIMALS,
    ATTRIBUTES,
    DESTINATIONS,
    DISHES,
    DRINKS,
    FAMILY,
    FOODS,
    FREQUENCIES,
    GERUNDS,
    JOURNEYS,
    LOCALITIES,
    NAMES,
    OPENINGS,
    PASTIMES,
    PEOPLE,
    PLACES,
    PRONOUNS,
    QUALITIES,
    SIZES_AND_AGES,
    SPOTS,
    STATES,
    TEXTS,
    THINGS,
    TIMES,
)
from worker.demo.verbs import INTRANSITIVE, LINGUISTIC, MODAL, MOTION, TRANSITIVE

_RENDERERS = {
    "it": italian.render,
    "de": german.render,
    "fr": french.render,
    "es": spanish.render,
}

_FEELINGS = [TRANSITIVE[verb] for verb in ("love", "like", "hate", "prefer")]
_GOODS = THINGS + TEXTS + OPENINGS[2:]
_OBJECTS: dict[str, list[Noun]] = {
    "read": TEXTS,
    "write": [noun for noun in TEXTS if noun.singular != "newspaper"],
    "buy": _GOODS + FOODS + DISHES + DRINKS + ANIMALS,
    "sell": _GOODS + FOODS + ANIMALS,
    "see": _GOODS + ANIMALS + PEOPLE + FAMILY,
    "have": _GOODS + ANIMALS + FAMILY,
    "want": _GOODS + FOODS + DISHES + DRINKS + ANIMALS,
    "eat": FOODS + DISHES,
    "drink": DRINKS,
    "know": PEOPLE + FAMILY,
    "look for": _GOODS + ANIMALS + PEOPLE + FAMILY,
    "find": _GOODS + ANIMALS,
    "open": OPENINGS + TEXTS[:2],
    "close": OPENINGS,
    "wash": THINGS[:3] + THINGS[13:16] + OPENINGS[1:2] + FOODS[:1] + ANIMALS[:3],
    "cook": FOODS[3:5] + DISHES[2:],
    "listen to": PASTIMES[:1],
}
# Verbs of state take no modal, place, time or frequency.
_STATIVE = {TRANSITIVE[verb] for verb in ("have", "want", "know")}
_BELOVED = ANIMALS + FOODS + DISHES + DRINKS + TEXTS + PASTIMES + [THINGS[11]]
_PERSONAL_VERBS = [TRANSITIVE[verb] for verb in ("love", "hate", "see", "know", "look for")]
_ATTRIBUTES_BY_KIND = {
    "thing": ATTRIBUTES,
    "opening": ATTRIBUTES,
    "animal": ATTRIBUTES,
    "text": SIZES_AND_AGES,
}
# "my friend" is natural, "my man" is not meant literally.
_RELATED_PEOPLE = PEOPLE[4:]


@dataclass(frozen=True, slots=True)
class Sentence:
    english: str
    translations: dict[Language, str]


def sample_sentence(rng: Random) -> Sentence:
    return translate(sample_clause(rng))


def translate(clause: Clause) -> Sentence:
    return Sentence(
        english.render(clause),
        {language: _RENDERERS[language](clause) for language in LANGUAGES},
    )


def sample_clause(rng: Random) -> Clause:
    templates = [_feeling, _doing, _moving, _object_pronoun, _describing, _whereabouts]
    template = rng.choices(templates, weights=[30, 44, 9, 5, 14, 3])[0]
    return template(rng)


def _feeling(rng: Random) -> Clause:
    verb = rng.choice(_FEELINGS)
    item: Object = rng.choice(GERUNDS)
    if rng.random() < 0.5:
        noun = rng.choice(_BELOVED)
        item = _mass_phrase(rng, noun) if _is_mass(noun) else _generic_phrase(rng, noun)
    is_question, is_negated = _mood(rng)
    return Action(
        _subject(rng),
        verb,
        item,
        is_generic=True,
        is_negated=is_negated,
        is_question=is_question,
    )


def _generic_phrase(rng: Random, noun: Noun) -> NounPhrase:
    determiner = rng.choice(("bare", "bare", "bare", "the", "this", *POSSESSIVES))
    is_plural = determiner == "bare" or rng.random() < 0.3
    return NounPhrase(determiner, noun, is_plural, _attribute(rng, noun))


def _doing(rng: Random) -> Clause:
    kind = rng.random()
    if kind < 0.65:
        return _with_circumstances(rng, _transitive(rng))
    if kind < 0.88:
        verb = rng.choice(list(INTRANSITIVE.values()))
        return _with_circumstances(rng, Action(_subject(rng), verb))
    action = Action(_subject(rng), rng.choice(list(LINGUISTIC.values())))
    return _with_circumstances(rng, action)


def _transitive(rng: Random) -> Action:
    verb = TRANSITIVE[rng.choice(list(_OBJECTS))]
    noun = rng.choice(_OBJECTS[verb.en])
    if noun.kind in ("person", "family") and verb.en != "have" and rng.random() < 0.15:
        return Action(_subject(rng), verb, rng.choice(NAMES))
    return Action(_subject(rng), verb, _object(rng, verb, noun))


def _object(rng: Random, verb: Verb, noun: Noun) -> NounPhrase:
    if _is_mass(noun):
        return _mass_phrase(rng, noun)
    if noun.kind == "family" and verb.en == "have":
        determiner: Determiner = rng.choice(("a", "a", *NUMBERS))
    elif noun.kind == "family":
        determiner = rng.choice(POSSESSIVES)
    elif noun.kind == "person":
        determiner = _person_determiner(rng, noun)
    else:
        groups: list[Sequence[Determiner]] = [["a"], ["the"], ["this"], ["bare"]]
        weights = [28, 24, 8, 10, 18, 12]
        determiner = rng.choice(rng.choices([*groups, POSSESSIVES, NUMBERS], weights)[0])
    return _counted(rng, determiner, noun)


def _counted(rng: Random, determiner: Determiner, noun: Noun) -> NounPhrase:
    is_plural = determiner in ("bare", *NUMBERS) or (determiner != "a" and rng.random() < 0.3)
    return NounPhrase(determiner, noun, is_plural, _attribute(rng, noun))


def _attribute(rng: Random, noun: Noun) -> Adjective | None:
    pool = _ATTRIBUTES_BY_KIND.get(noun.kind)
    return rng.choice(pool) if pool and rng.random() < 0.3 else None


def _mass_phrase(rng: Random, noun: Noun) -> NounPhrase:
    if noun.kind == "pastime":
        return NounPhrase("bare", noun)
    return NounPhrase(rng.choice(("bare", "bare", "bare", "the", *POSSESSIVES[:5])), noun)


def _is_mass(noun: Noun) -> bool:
    return noun.kind in ("dish", "drink", "pastime")


def _mood(rng: Random) -> tuple[bool, bool]:
    """(is_question, is_negated), never both."""
    draw = rng.random()
    return draw < 0.15, 0.15 <= draw < 0.4


def _with_circumstances(rng: Random, action: Action) -> Action:
    is_question, is_negated = _mood(rng)
    action = replace(action, is_question=is_question, is_negated=is_negated)
    if is_negated:
        action = replace(action, object=_denied(action.object))
    if action.verb in _STATIVE:
        return action
    draw = rng.random()
    if draw < 0.2:
        action = replace(action, modal=_modal(rng, action))
    elif draw < 0.35 and not is_negated:
        action = replace(action, frequency=rng.choice(FREQUENCIES))
    place = rng.choice(PLACES) if action.place is None and rng.random() < 0.25 else action.place
    time = rng.choice(TIMES) if action.frequency is None and rng.random() < 0.25 else None
    return replace(action, place=place, time=time)


def _denied(item: Object | None) -> Object | None:
    """Numbers do not occur under "not": German would have to choose what is negated."""
    if isinstance(item, NounPhrase) and item.determiner in NUMBERS:
        return replace(item, determiner="my" if item.noun.kind == "family" else "the")
    return item


def _modal(rng: Random, action: Action) -> Verb:
    # "must not" and "must you" mean different things in different languages.
    is_plain = not action.is_negated and not action.is_question
    return MODAL[rng.choice(("want to", "can", "must") if is_plain else ("want to", "can"))]


def _moving(rng: Random) -> Clause:
    verb = rng.choice(list(MOTION.values()))
    places = {"go": DESTINATIONS, "travel": JOURNEYS, "live": LOCALITIES}[verb.en]
    return _with_circumstances(rng, Action(_subject(rng), verb, place=rng.choice(places)))


def _object_pronoun(rng: Random) -> Clause:
    subject, item = _subject(rng), rng.choice(PRONOUNS)
    while _is_reflexive(subject, item):
        item = rng.choice(PRONOUNS)
    is_question, is_negated = _mood(rng)
    verb = rng.choice(_PERSONAL_VERBS)
    time = rng.choice(TIMES) if verb.en in ("see", "look for") and rng.random() < 0.3 else None
    return Action(subject, verb, item, time=time, is_negated=is_negated, is_question=is_question)


def _is_reflexive(subject: Subject, item: Pronoun) -> bool:
    """ "I see myself" has other forms; "we see me" has no sense."""
    is_speaker = isinstance(subject, Pronoun) and subject.en in ("I", "we")
    return subject == item or (is_speaker and item.en in ("I", "we"))


def _describing(rng: Random) -> Clause:
    is_question, is_negated = _mood(rng)
    description = Description(_subject(rng), is_negated=is_negated, is_question=is_question)
    draw = rng.random()
    if draw < 0.25:
        return replace(description, place=rng.choice(PLACES))
    if draw < 0.35:
        return replace(description, subject=_thing(rng), place=rng.choice(SPOTS))
    if draw < 0.45:
        return replace(description, state=rng.choice(STATES))
    is_intensified = rng.random() < 0.25
    if draw < 0.75:
        return replace(description, adjective=rng.choice(QUALITIES), is_intensified=is_intensified)
    return replace(
        description,
        subject=_thing(rng),
        adjective=rng.choice(ATTRIBUTES),
        is_intensified=is_intensified,
    )


def _whereabouts(rng: Random) -> Clause:
    draw = rng.random()
    if draw < 0.15:
        return Whereabouts(rng.choice(NAMES))
    return Whereabouts(_thing(rng) if draw < 0.7 else _person(rng))


def _thing(rng: Random) -> NounPhrase:
    noun = rng.choice(THINGS + TEXTS + OPENINGS + ANIMALS)
    determiner: Determiner = rng.choice(("the", "the", "the", "this", *POSSESSIVES))
    return NounPhrase(determiner, noun, rng.random() < 0.35)


def _subject(rng: Random) -> Subject:
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(PRONOUNS)
    return rng.choice(NAMES) if draw < 0.65 else _person(rng)


def _person(rng: Random) -> NounPhrase:
    is_plural = rng.random() < 0.3
    if rng.random() < 0.4:
        return NounPhrase(rng.choice(POSSESSIVES), rng.choice(FAMILY), is_plural)
    return NounPhrase(_person_determiner(rng, noun := rng.choice(PEOPLE)), noun, is_plural)


def _person_determiner(rng: Random, noun: Noun) -> Determiner:
    owners = POSSESSIVES if noun in _RELATED_PEOPLE else ()
    return rng.choice(("the", "the", "the", "this", *owners))
