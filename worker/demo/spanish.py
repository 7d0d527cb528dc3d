"""Renders a clause in Spanish.

Subject pronouns are spoken ("Yo amo"), as in Italian. People as objects take the personal "a"
(not after "tener"). "To like" turns round: "Me gusta nadar", "A Marco le gustan las manzanas".
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
from worker.demo.verbs import ESTAR_ES, SER_ES, TRANSITIVE

_POSSESSIVE = {
    "my": ("mi", "mi", "mis", "mis"),
    "your": ("tu", "tu", "tus", "tus"),
    "his": ("su", "su", "sus", "sus"),
    "her": ("su", "su", "sus", "sus"),
    "our": ("nuestro", "nuestra", "nuestros", "nuestras"),
    "their": ("su", "su", "sus", "sus"),
}
_DEMONSTRATIVE = ("este", "esta", "estos", "estas")
_DEFINITE = ("el", "la", "los", "las")
_NUMBER = {"two": "dos", "three": "tres", "four": "cuatro", "five": "cinco"}
# Who likes, and the clitic that goes with the verb: "A él no le gusta".
_EXPERIENCER = {
    "I": ("", "me"),
    "you": ("", "te"),
    "he": ("a él", "le"),
    "she": ("a ella", "le"),
    "we": ("", "nos"),
    "they": ("a ellos", "les"),
}


def render(clause: Clause) -> str:
    match clause:
        case Action(verb=verb) if verb is TRANSITIVE["like"]:
            return _sentence(_liking(clause), clause.is_question)
        case Action():
            return _sentence(_action(clause), clause.is_question)
        case Description():
            return _sentence(_description(clause), clause.is_question)
        case Whereabouts():
            be = ESTAR_ES[person_of(clause.subject)]
            return _sentence(words("dónde", be, _subject(clause.subject)), is_question=True)


def _sentence(text: str, is_question: bool) -> str:
    text = capitalised(text)
    return f"¿{text}?" if is_question else text


def _action(clause: Action) -> str:
    clitic, item = "", _object(clause)
    if isinstance(clause.object, Pronoun):
        clitic, item = clause.object.es_object, ""
    return words(
        _subject(clause.subject),
        clause.frequency.es if clause.frequency else "",
        "no" if clause.is_negated else "",
        clitic,
        (clause.modal or clause.verb).es.present[person_of(clause.subject)],
        clause.verb.es.infinitive if clause.modal else "",
        item,
        clause.verb.es.complement,
        clause.place.es if clause.place else "",
        clause.time.es if clause.time else "",
    )


def _liking(clause: Action) -> str:
    is_many = isinstance(clause.object, NounPhrase) and clause.object.is_plural
    experiencer, clitic = _experiencer(clause.subject)
    negation = "no" if clause.is_negated else ""
    verb = "gustan" if is_many else "gusta"
    return words(experiencer, negation, clitic, verb, _object(clause))


def _experiencer(subject: Subject) -> tuple[str, str]:
    if isinstance(subject, Pronoun):
        return _EXPERIENCER[subject.en]
    return _with_a(_subject(subject)), "les" if is_plural(subject) else "le"


def _with_a(text: str) -> str:
    return "al " + text[3:] if text.startswith("el ") else "a " + text


def _description(clause: Description) -> str:
    subject = _subject(clause.subject)
    person = person_of(clause.subject)
    negation = "no" if clause.is_negated else ""
    if clause.state:
        return words(subject, negation, TRANSITIVE["have"].es.present[person], clause.state.es)
    if clause.adjective is None:
        assert clause.place is not None
        return words(subject, negation, ESTAR_ES[person], clause.place.es)
    be = (ESTAR_ES if clause.adjective.is_temporary else SER_ES)[person]
    adjective = _agree(clause.adjective.es, _gender_of(clause.subject), is_plural(clause.subject))
    return words(subject, negation, be, "muy" if clause.is_intensified else "", adjective)


def _gender_of(subject: Subject) -> str:
    return subject.noun.es.gender if isinstance(subject, NounPhrase) else subject.gender


def _agree(forms: tuple[str, ...], gender: str, plural: bool) -> str:
    """`forms` in the order masculine, feminine, masculine plural, feminine plural."""
    return forms[2 * plural + (gender == "f")]


def _subject(subject: Subject) -> str:
    match subject:
        case Pronoun():
            return subject.es
        case Name():
            return subject.text
        case _:
            return noun_phrase(subject)


def _object(clause: Action) -> str:
    match clause.object:
        case None:
            return ""
        case Phrase() | Pronoun():
            return clause.object.es
        case item:
            text = item.text if isinstance(item, Name) else noun_phrase(item, clause.is_generic)
            return _with_a(text) if _takes_a(clause, item) else text


def _takes_a(clause: Action, item: Object) -> bool:
    if clause.verb in (TRANSITIVE["have"], TRANSITIVE["like"]):
        return False
    is_person = isinstance(item, NounPhrase) and item.noun.kind in ("person", "family")
    return isinstance(item, Name) or is_person


def noun_phrase(phrase: NounPhrase, is_generic: bool = False) -> str:
    noun = phrase.noun.es
    text = noun.form(phrase.is_plural)
    adjective = ""
    if phrase.adjective:
        adjective = _agree(phrase.adjective.es, noun.gender, phrase.is_plural)
    return words(_determiner(phrase, text, is_generic), text, adjective)


def _determiner(phrase: NounPhrase, text: str, is_generic: bool) -> str:
    gender, plural = phrase.noun.es.gender, phrase.is_plural
    # "el agua": feminine, but with the masculine article before a stressed a.
    article_gender = "m" if text == "agua" else gender
    match phrase.determiner:
        case "bare":
            return _agree(_DEFINITE, article_gender, plural) if is_generic else ""
        case "the":
            return _agree(_DEFINITE, article_gender, plural)
        case "a":
            return "una" if article_gender == "f" else "un"
        case "this":
            return _agree(_DEMONSTRATIVE, gender, plural)
        case possessive if possessive in POSSESSIVES:
            return _agree(_POSSESSIVE[possessive], gender, plural)
        case number:
            return _NUMBER[number]
