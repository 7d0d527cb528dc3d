"""Renders a clause in Italian.

Subject pronouns are spoken ("Io amo"), because the English sentence has them too. "To like" turns
the sentence round: "Mi piace nuotare", "A Marco piacciono le mele".
"""

from worker.demo.clause import (
    POSSESSIVES,
    Action,
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
    is_plural,
    person_of,
    words,
)
from worker.demo.lexicon import NEVER
from worker.demo.verbs import BE_IT, TRANSITIVE

_POSSESSIVE = {
    "my": ("mio", "mia", "miei", "mie"),
    "your": ("tuo", "tua", "tuoi", "tue"),
    "his": ("suo", "sua", "suoi", "sue"),
    "her": ("suo", "sua", "suoi", "sue"),
    "our": ("nostro", "nostra", "nostri", "nostre"),
    "their": ("loro", "loro", "loro", "loro"),
}
_DEMONSTRATIVE = ("questo", "questa", "questi", "queste")
_NUMBER = {"two": "due", "three": "tre", "four": "quattro", "five": "cinque"}
_TO_ARTICLE = {
    "il": "al", "lo": "allo", "la": "alla", "l'": "all'", "i": "ai", "gli": "agli", "le": "alle",
}  # fmt: skip
_EXPERIENCER = {"I": "mi", "you": "ti", "he": "gli", "she": "le", "we": "ci", "they": "a loro"}


def render(clause: Clause) -> str:
    match clause:
        case Action(verb=verb) if verb is TRANSITIVE["like"]:
            return _sentence(_liking(clause), clause.is_question)
        case Action():
            return _sentence(_action(clause), clause.is_question)
        case Description():
            return _sentence(_description(clause), clause.is_question)
        case Whereabouts():
            be = "Dov'è" if not is_plural(clause.subject) else "Dove sono"
            return _sentence(words(be, _subject(clause.subject)), is_question=True)


def _sentence(text: str, is_question: bool) -> str:
    return capitalised(text) + ("?" if is_question else "")


def _action(clause: Action) -> str:
    main = (clause.modal or clause.verb).it.present[person_of(clause.subject)]
    is_clitic = isinstance(clause.object, Pronoun)
    return words(
        _subject(clause.subject),
        "non" if clause.is_negated or clause.frequency is NEVER else "",
        clause.object.it_object if isinstance(clause.object, Pronoun) else "",
        main,
        clause.frequency.it if clause.frequency else "",
        clause.verb.it.infinitive if clause.modal else "",
        "" if is_clitic else _object(clause.object, clause.is_generic),
        clause.verb.it.complement,
        clause.place.it if clause.place else "",
        clause.time.it if clause.time else "",
    )


def _liking(clause: Action) -> str:
    is_many = isinstance(clause.object, NounPhrase) and clause.object.is_plural
    experiencer = _experiencer(clause.subject)
    negation = "non" if clause.is_negated else ""
    # "Non mi piace", but "A Marco non piace".
    is_clitic = " " not in experiencer
    opening = words(negation, experiencer) if is_clitic else words(experiencer, negation)
    return words(
        opening, "piacciono" if is_many else "piace", _object(clause.object, clause.is_generic)
    )


def _experiencer(subject: Subject) -> str:
    match subject:
        case Pronoun():
            return _EXPERIENCER[subject.en]
        case Name():
            return f"a {subject.text}"
        case _:
            first, space, rest = noun_phrase(subject).partition(" ")
            if "'" in first and not first.startswith("quest"):
                return "al" + first
            if first in _TO_ARTICLE:
                return _TO_ARTICLE[first] + space + rest
            return f"a {first}{space}{rest}"


def _description(clause: Description) -> str:
    subject = _subject(clause.subject)
    person = person_of(clause.subject)
    negation = "non" if clause.is_negated else ""
    if clause.state:
        have = TRANSITIVE["have"].it.present[person]
        return words(subject, negation, have, clause.state.it)
    predicate = clause.place.it if clause.place else ""
    if clause.adjective:
        predicate = agree(clause.adjective.it, gender_of(clause.subject), is_plural(clause.subject))
    intensifier = "molto" if clause.is_intensified else ""
    return words(subject, negation, BE_IT[person], intensifier, predicate)


def gender_of(subject: Subject) -> str:
    return subject.noun.it.gender if isinstance(subject, NounPhrase) else subject.gender


def agree(forms: tuple[str, ...], gender: str, plural: bool) -> str:
    """`forms` in the order masculine, feminine, masculine plural, feminine plural."""
    return forms[2 * plural + (gender == "f")]


def _subject(subject: Subject) -> str:
    match subject:
        case Pronoun():
            return subject.it
        case Name():
            return subject.text
        case _:
            return noun_phrase(subject)


def _object(item: Object | None, is_generic: bool) -> str:
    match item:
        case None:
            return ""
        case Phrase() | Pronoun():
            return item.it
        case Name():
            return item.text
        case _:
            return noun_phrase(item, is_generic)


def noun_phrase(phrase: NounPhrase, is_generic: bool = False) -> str:
    noun = phrase.noun.it
    text = noun.form(phrase.is_plural)
    determiner = _determiner(phrase, text, is_generic)
    adjective = ""
    if phrase.adjective:
        adjective = agree(phrase.adjective.it, noun.gender, phrase.is_plural)
    return words(determiner, text, adjective)


def _determiner(phrase: NounPhrase, following: str, is_generic: bool) -> str:
    gender, plural = phrase.noun.it.gender, phrase.is_plural
    match phrase.determiner:
        case "bare":
            return _definite(following, gender, plural) if is_generic else ""
        case "the":
            return _definite(following, gender, plural)
        case "a":
            return _indefinite(following, gender)
        case "this":
            is_elided = not plural and following[0] in "aeiou"
            return "quest'" if is_elided else agree(_DEMONSTRATIVE, gender, plural)
        case possessive if possessive in POSSESSIVES:
            owner = agree(_POSSESSIVE[possessive], gender, plural)
            return owner if _is_close_kin(phrase) else f"{_definite(owner, gender, plural)} {owner}"
        case number:
            return _NUMBER[number]


def _is_close_kin(phrase: NounPhrase) -> bool:
    """ "Mia madre" has no article; "la loro madre" and "le mie sorelle" do."""
    is_kin = phrase.noun.kind == "family" and not phrase.is_plural
    return is_kin and phrase.determiner != "their"


def _definite(following: str, gender: str, plural: bool) -> str:
    if not plural and following[0] in "aeiou":
        return "l'"
    if gender == "f":
        return "le" if plural else "la"
    takes_lo = following[0] in "aeiou" or _is_impure(following)
    if plural:
        return "gli" if takes_lo else "i"
    return "lo" if takes_lo else "il"


def _indefinite(following: str, gender: str) -> str:
    if gender == "f":
        return "un'" if following[0] in "aeiou" else "una"
    return "uno" if _is_impure(following) else "un"


def _is_impure(word: str) -> bool:
    """Starts with z, gn, ps or s and a consonant: "lo zio", "uno studente"."""
    return word.startswith(("z", "gn", "ps")) or (word[0] == "s" and word[1] not in "aeiou")
