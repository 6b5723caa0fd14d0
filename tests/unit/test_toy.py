"""The toy grammar: agreement, word order, and a target side that is ambiguous with a clear mode."""

import random
import re

import pytest

from kdlab.data import toy, toy_lexicon
from kdlab.data.toy_clause import Clause
from kdlab.data.toy_phrase import WIR, Name, Phrase, third_person
from kdlab.errors import UserError

NOUN = toy_lexicon.BY_WORD
ADJECTIVE = {entry.german: entry for entries in toy_lexicon.ADJECTIVES.values() for entry in entries}
VERB = {entry.prefix + entry.infinitive: entry for entries in toy_lexicon.VERBS.values() for entry in entries}
MODAL = {entry.german[0]: entry for entry in toy_lexicon.MODALS}
TIME = {entry.german: entry for entries in toy_lexicon.TIMES.values() for entry in entries}
LINK = dict(toy_lexicon.OTHERS["because"])
PREPOSITION = {entry[0]: entry for entries in toy_lexicon.PREPOSITIONS.values() for entry in entries}

MAN, PETER = Phrase(NOUN["Mann"]), Name("Peter", "Peter", 0)
DOOR = Phrase(NOUN["Haustür"])


def mode(clause, order="main"):
    return clause.english(toy.mode, order)


@pytest.mark.parametrize(
    ("phrase", "nominative", "accusative", "dative"),
    [
        (MAN._replace(adjective=ADJECTIVE["alt"]), "der alte Mann", "den alten Mann", "dem alten Mann"),
        (Phrase(NOUN["Frau"], "ein", False, ADJECTIVE["alt"]), "eine alte Frau", "eine alte Frau", "einer alten Frau"),
        (
            Phrase(NOUN["Kind"], "mein", False, ADJECTIVE["alt"]),
            "mein altes Kind",
            "mein altes Kind",
            "meinem alten Kind",
        ),
        (Phrase(NOUN["Junge"], "dies"), "dieser Junge", "diesen Jungen", "diesem Jungen"),
        (Phrase(NOUN["Haus"], "ein", True, ADJECTIVE["teuer"]), "teure Häuser", "teure Häuser", "teuren Häusern"),
        (
            Phrase(NOUN["Tor"], "der", True, ADJECTIVE["dunkel"]),
            "die dunklen Tore",
            "die dunklen Tore",
            "den dunklen Toren",
        ),
        (Phrase(NOUN["Buch"], "unser", True), "unsere Bücher", "unsere Bücher", "unseren Büchern"),
    ],
)
def test_noun_phrases_agree(phrase, nominative, accusative, dative):
    assert [phrase.german(case) for case in range(3)] == [nominative, accusative, dative]


def test_english_articles_and_plurals():
    assert Phrase(NOUN["Apfel"], "ein").english(toy.mode) == "an apple"
    assert Phrase(NOUN["Apfel"], "ein", False, ADJECTIVE["rot"]).english(toy.mode) == "a red apple"
    assert Phrase(NOUN["Frau"], "dies", True).english(toy.mode) == "these women"
    assert DOOR.english(toy.mode) == "the front door"
    table = next(noun for noun in toy_lexicon.COMPOUNDS["thing"] if noun.german[0] == "Küchentisch")
    assert Phrase(table, "", True, number=("drei", ((1.0, "three"),))).english(toy.mode) == "three kitchen tables"


def test_separable_verbs_in_every_position():
    opens = Clause(MAN, VERB["aufmachen"], direct=DOOR, time=TIME["heute"])
    assert opens.german() == "der Mann macht heute die Haustür auf"
    assert opens._replace(front="time").german() == "heute macht der Mann die Haustür auf"
    assert opens.german("question") == "macht der Mann heute die Haustür auf"
    assert opens.german("final") == "der Mann heute die Haustür aufmacht"
    assert opens._replace(past=True).german() == "der Mann hat heute die Haustür aufgemacht"
    assert opens._replace(past=True).german("final") == "der Mann heute die Haustür aufgemacht hat"
    assert opens._replace(modal=MODAL["will"]).german("final") == "der Mann heute die Haustür aufmachen will"
    assert mode(opens) == "the man opens the front door today"
    assert mode(opens, "question") == "does the man open the front door today"
    assert mode(opens._replace(past=True)) == "the man opened the front door today"
    assert mode(opens._replace(subject=WIR, negated=True)) == "we do not open the front door today"


def test_clauses():
    kein = Clause(PETER, VERB["kaufen"], direct=Phrase(NOUN["Auto"], "kein"), negated=True)
    assert kein.german() == "Peter kauft kein Auto"
    assert mode(kein) == "Peter does not buy a car"
    assert kein.english(lambda: 0.99) == "Peter is purchasing no car"
    gives = Clause(WIR, VERB["geben"], direct=Phrase(NOUN["Buch"]), indirect=Phrase(NOUN["Kind"], plural=True))
    assert gives.german() == "wir geben den Kindern das Buch"
    assert {gives.english(random.Random(i).random) for i in range(99)} >= {
        "we give the children the book",
        "we are giving the book to the kids",
    }
    lamp = Clause(PETER, VERB["anmachen"], direct=third_person(1, "it"), modal=MODAL["kann"], negated=True)
    assert lamp.german() == "Peter kann sie nicht anmachen"
    assert mode(lamp) == "Peter cannot turn it on"
    goes = Clause(
        third_person(1, "she"), VERB["gehen"], past=True, phrases=((PREPOSITION["in"], Phrase(NOUN["Garten"])),)
    )
    assert (goes.german(), mode(goes)) == ("sie ist in den Garten gegangen", "she went to the garden")
    waits = Clause(WIR, VERB["warten"], direct=MAN, often=("oft", ((1.0, "often"),)))
    assert (waits.german("final"), mode(waits)) == ("wir oft auf den Mann warten", "we often wait for the man")
    old = Clause(DOOR, adjective=ADJECTIVE["alt"], degree=("sehr", ((1.0, "very"),)), negated=True)
    assert (old.german(), mode(old)) == ("die Haustür ist nicht sehr alt", "the front door is not very old")
    fronted = Clause(Phrase(NOUN["Frau"]), VERB["sehen"], direct=MAN, front="object")
    assert (fronted.german(), mode(fronted)) == ("den Mann sieht die Frau", "the woman sees the man")


def test_two_clauses():
    sleeps, tired = Clause(MAN, VERB["einschlafen"]), Clause(MAN, adjective=ADJECTIVE["müde"])
    first = toy.Sentence("sub_first", sleeps, tired, ("weil", LINK["weil"]), same_subject=True)
    assert first.german() == "Weil der Mann müde ist, schläft er ein."
    assert first.english(toy.mode) == "Because the man is tired, he falls asleep."
    last = first._replace(kind="sub_last")
    assert last.german() == "Der Mann schläft ein, weil er müde ist."
    assert {last.english(random.Random(i).random) for i in range(99)} >= {
        "The man falls asleep because he is tired.",
        "Since the man is tired, he is falling asleep.",
    }
    believes = toy.Sentence("clausal", Clause(PETER, VERB["wissen"]), sleeps)
    assert believes.german() == "Peter weiß, dass der Mann einschläft."
    assert believes.english(toy.mode) == "Peter knows that the man falls asleep."


def test_lines_are_a_function_of_split_seed_and_index():
    ten = list(toy.generate("train", 10, 5))
    assert ten == list(toy.generate("train", 1000, 5))[:10]
    others = [
        list(toy.generate("train", 10, 6)),
        list(toy.generate("valid", 10, 5)),
        list(toy.generate("train", 10, -5)),
    ]
    assert all(not set(ten) & set(other) for other in others)
    # a change here needs a new VERSION
    assert toy.VERSION == 1
    assert ten[:2] == [
        (
            "Die wichtige Frau denkt, dass sie nach dem Essen einem müden Verkäufer in Hamburg zugehört hat.",
            "The important woman thinks she listened to a tired seller in Hamburg after dinner.",
        ),
        (
            "Während die Nachbarn einen Vater einladen sollen, hat die Lehrerin am Abend Laura die Handschuhe ohne "
            "einen Nachbarn gebracht.",
            "The teacher brought the gloves to Laura without a neighbour in the evening as the neighbours are "
            "supposed to invite a father.",
        ),
    ]


def test_splits_share_no_source_even_with_different_seeds():
    sources = [{de for de, _ in toy.generate(split, n, seed)} for split, n, seed in SPLITS]
    assert len(sources[0]) > 0.99 * 20_000
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    assert not sources[1] & sources[2]


SPLITS = [("train", 20_000, 1), ("valid", 2000, 2), ("test", 2000, 1)]


def test_the_corpus_is_natural_enough():
    pairs = list(toy.generate("train", 5000, 1))
    for side in range(2):
        text = [pair[side] for pair in pairs]
        assert 9 <= sum(len(line.split()) for line in text) / len(text) <= 14
        assert all(re.fullmatch(r"[A-ZÄÖÜ0-9][^.?{}]*[.?]", line) for line in text)
        assert not any("  " in line or line.endswith(" .") for line in text)
        assert len({word for line in text for word in line.split()}) > 1200
    starts = [german for german, _ in pairs if ", weil " in german]
    assert len(starts) > 100
    assert not any(re.search(r"\ba [aeio]", english) for _, english in pairs)


def test_one_german_sentence_has_many_translations_and_a_mode():
    """A translation drawn at random agrees with another less often than the mode does: what a teacher removes."""
    modes, drawn, references, several = 0, 0, 0, 0
    for _, sentence, source in toy.drawn("test", 2000, 1):
        reference = sentence.english(source)
        translations = [sentence.english(source) for _ in range(6)]
        modes += sentence.english(toy.mode) == reference
        drawn += translations[0] == reference
        references += 1
        several += len(set(translations)) > 3
    assert several > 0.8 * references
    assert modes > 1.3 * drawn > 0


def test_every_option_list_begins_with_its_mode():
    found = [entry.english for group in toy_lexicon.NOUNS.values() for entry in group]
    found += [entry.english for group in toy_lexicon.VERBS.values() for entry in group]
    found += [entry.english for group in toy_lexicon.ADJECTIVES.values() for entry in group]
    found += [options for pairs in toy_lexicon.OTHERS.values() for _, options in pairs]
    for options in found:
        shares = [share for share, _ in toy_lexicon.shares_of(options)]
        assert shares[0] >= max(shares[1:], default=0) + 0.15


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="did you mean 'valid'"):
        next(toy.generate("vaild", 1, 1))
