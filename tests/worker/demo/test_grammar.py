"""Sentences checked by hand, one grammatical point each, and the promise of a single rendering."""

from random import Random

import pytest

from worker.demo.clause import (
    Action,
    Adjective,
    Clause,
    Description,
    Language,
    Noun,
    NounPhrase,
    Whereabouts,
)
from worker.demo.grammar import sample_sentence, translate
from worker.demo.lexicon import (
    ANIMALS,
    ATTRIBUTES,
    DESTINATIONS,
    DRINKS,
    FAMILY,
    FOODS,
    FREQUENCIES,
    GERUNDS,
    NAMES,
    PEOPLE,
    PLACES,
    PRONOUNS,
    QUALITIES,
    STATES,
    TEXTS,
    THINGS,
    TIMES,
)
from worker.demo.verbs import INTRANSITIVE, LINGUISTIC, MODAL, MOTION, TRANSITIVE

ME, YOU, HE, SHE, WE, THEY = PRONOUNS
ANNA = next(name for name in NAMES if name.text == "Anna")
NOUNS = {
    noun.singular: noun
    for nouns in (PEOPLE, FAMILY, ANIMALS, TEXTS, THINGS, FOODS, DRINKS)
    for noun in nouns
}
ADJECTIVES = {adjective.en: adjective for adjective in ATTRIBUTES + QUALITIES}
PHRASES = {
    phrase.en: phrase
    for phrases in (GERUNDS, PLACES, DESTINATIONS, TIMES, FREQUENCIES, STATES)
    for phrase in phrases
}


def noun(word: str) -> Noun:
    return NOUNS[word]


def adjective(word: str) -> Adjective:
    return ADJECTIVES[word]


CASES: list[tuple[Clause, str, str, str, str, str]] = [
    (
        Action(ME, TRANSITIVE["love"], PHRASES["programming"], is_generic=True),
        "I love programming",
        "Io amo programmare",
        "Ich liebe Programmieren",
        "J'aime programmer",
        "Yo amo programar",
    ),
    (
        Action(
            NounPhrase("the", noun("student")),
            TRANSITIVE["like"],
            NounPhrase("bare", noun("apple"), is_plural=True),
            is_generic=True,
            is_negated=True,
        ),
        "The student does not like apples",
        "Allo studente non piacciono le mele",
        "Der Student mag Äpfel nicht",
        "L'étudiant n'aime pas les pommes",
        "Al estudiante no le gustan las manzanas",
    ),
    (
        Action(
            WE,
            TRANSITIVE["buy"],
            NounPhrase("a", noun("car"), adjective=adjective("red")),
            is_negated=True,
            time=PHRASES["today"],
        ),
        "We do not buy a red car today",
        "Noi non compriamo una macchina rossa oggi",
        "Wir kaufen heute kein rotes Auto",
        "Nous n'achetons pas de voiture rouge aujourd'hui",
        "Nosotros no compramos un coche rojo hoy",
    ),
    (
        Action(
            NounPhrase("my", noun("sister")),
            TRANSITIVE["see"],
            NounPhrase("the", noun("boy")),
            is_question=True,
        ),
        "Does my sister see the boy?",
        "Mia sorella vede il ragazzo?",
        "Sieht meine Schwester den Jungen?",
        "Est-ce que ma sœur voit le garçon ?",
        "¿Mi hermana ve al chico?",
    ),
    (
        Action(
            ANNA,
            TRANSITIVE["read"],
            NounPhrase("bare", noun("book"), is_plural=True, adjective=adjective("old")),
            modal=MODAL["want to"],
            place=PHRASES["in the garden"],
        ),
        "Anna wants to read old books in the garden",
        "Anna vuole leggere libri vecchi nel giardino",
        "Anna will alte Bücher im Garten lesen",
        "Anna veut lire de vieux livres dans le jardin",
        "Anna quiere leer libros viejos en el jardín",
    ),
    (
        Action(
            THEY,
            TRANSITIVE["drink"],
            NounPhrase("bare", noun("water")),
            frequency=PHRASES["never"],
        ),
        "They never drink water",
        "Loro non bevono mai acqua",
        "Sie trinken nie Wasser",
        "Ils ne boivent jamais d'eau",
        "Ellos nunca beben agua",
    ),
    (
        Action(HE, TRANSITIVE["love"], SHE),
        "He loves her",
        "Lui la ama",
        "Er liebt sie",
        "Il l'aime",
        "Él la ama",
    ),
    (
        Action(SHE, MOTION["go"], place=PHRASES["to school"], is_negated=True),
        "She does not go to school",
        "Lei non va a scuola",
        "Sie geht nicht zur Schule",
        "Elle ne va pas à l'école",
        "Ella no va a la escuela",
    ),
    (
        Action(YOU, INTRANSITIVE["play the piano"], modal=MODAL["can"], is_question=True),
        "Can you play the piano?",
        "Tu puoi suonare il pianoforte?",
        "Kannst du Klavier spielen?",
        "Est-ce que tu peux jouer du piano ?",
        "¿Tú puedes tocar el piano?",
    ),
    (
        Action(ME, LINGUISTIC["learn Italian"], time=PHRASES["every day"]),
        "I learn Italian every day",
        "Io imparo l'italiano ogni giorno",
        "Ich lerne jeden Tag Italienisch",
        "J'apprends l'italien tous les jours",
        "Yo aprendo italiano todos los días",
    ),
    (
        Description(
            NounPhrase("our", noun("daughter"), is_plural=True),
            adjective=adjective("tired"),
            is_intensified=True,
        ),
        "Our daughters are very tired",
        "Le nostre figlie sono molto stanche",
        "Unsere Töchter sind sehr müde",
        "Nos filles sont très fatiguées",
        "Nuestras hijas están muy cansadas",
    ),
    (
        Description(ME, state=PHRASES["hungry"], is_negated=True),
        "I am not hungry",
        "Io non ho fame",
        "Ich habe keinen Hunger",
        "Je n'ai pas faim",
        "Yo no tengo hambre",
    ),
    (
        Whereabouts(NounPhrase("his", noun("backpack"))),
        "Where is his backpack?",
        "Dov'è il suo zaino?",
        "Wo ist sein Rucksack?",
        "Où est son sac à dos ?",
        "¿Dónde está su mochila?",
    ),
    (
        Action(
            NounPhrase("this", noun("man")),
            TRANSITIVE["have"],
            NounPhrase("two", noun("brother"), is_plural=True),
        ),
        "This man has two brothers",
        "Quest'uomo ha due fratelli",
        "Dieser Mann hat zwei Brüder",
        "Cet homme a deux frères",
        "Este hombre tiene dos hermanos",
    ),
]


@pytest.mark.parametrize(("clause", "en", "it", "de", "fr", "es"), CASES, ids=[c[1] for c in CASES])
def test_clause_reads_as_checked_by_hand(
    clause: Clause, en: str, it: str, de: str, fr: str, es: str
) -> None:
    sentence = translate(clause)

    assert sentence.english == en
    assert sentence.translations == {"it": it, "de": de, "fr": fr, "es": es}


def test_english_sentence_has_one_rendering() -> None:
    rng = Random(7)
    seen: dict[str, dict[Language, str]] = {}

    for _ in range(20_000):
        sentence = sample_sentence(rng)
        first = seen.setdefault(sentence.english, sentence.translations)
        assert first == sentence.translations


def test_sampled_text_is_tidy() -> None:
    rng = Random(8)

    for _ in range(5_000):
        sentence = sample_sentence(rng)
        for text in (sentence.english, *sentence.translations.values()):
            assert text == " ".join(text.split())
            assert text.lstrip("¿")[0].isupper()
            assert not text.endswith(".")
