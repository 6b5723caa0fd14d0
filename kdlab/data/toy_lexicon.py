"""The lexicon of the toy grammar: the entries of data/toy_words.py, read and inflected.

Only data/toy.py uses it. Every translation is a set of options with probabilities, the most likely one first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

from kdlab.data import toy_words

GENDERS = {"m": 0, "f": 1, "n": 2}
CASES = {"acc": 1, "dat": 2}
Options = tuple[tuple[float, Any], ...]  # (cumulative probability, value), the most likely one first


class Noun(NamedTuple):
    """A noun: German forms in nominative, accusative, dative, singular then plural; English (singular, plural)."""

    german: tuple[str, ...]
    gender: int
    english: Options
    pronoun: str
    group: str


class Adjective(NamedTuple):
    """An adjective: as a predicate and as the stem before an ending."""

    german: str
    stem: str
    english: Options


class EnglishVerb(NamedTuple):
    """Forms of an English verb with its preposition; the particle is apart because it can follow the object."""

    base: str
    third: str
    past: str
    participle: str
    ing: str
    particle: str


class Verb(NamedTuple):
    """A German verb: plain infinitive, third person and separable prefix; what its object is like."""

    infinitive: str
    third: str
    prefix: str
    participle: str
    with_sein: bool
    english: Options
    objects: tuple[Noun, ...]
    preposition: str
    case: int
    stative: bool


class Time(NamedTuple):
    """An adverb of time; kind says which tenses it goes with: past, future, now, habit, free."""

    german: str
    english: Options
    kind: str


class Modal(NamedTuple):
    """A modal verb: (ich/er form, plural form); English when asserted and when negated."""

    german: tuple[str, str]
    english: Options
    negated: Options


def cumulated(shares: list[tuple[float, Any]]) -> Options:
    """Probabilities summed up, ready for one comparison with a uniform number each."""
    limits = list(accumulate(share for share, _ in shares))
    if abs(limits[-1] - 1.0) > 1e-9:
        raise ValueError(f"the shares of {shares!r} sum to {limits[-1]}")
    return tuple((limit, value) for limit, (_, value) in zip([*limits[:-1], 1.0], shares, strict=True))


def shares_of(options: Options) -> list[tuple[float, Any]]:
    """The inverse of `cumulated`."""
    limits = [0.0, *(limit for limit, _ in options)]
    return [(limit - before, value) for before, (limit, value) in zip(limits, options, strict=False)]


def options(text: str, value: Callable[[str], Any] = str) -> Options:
    """Reads `a .6 | b .4`."""
    shares = []
    for part in text.split("|"):
        *words, last = part.split()
        share = float(last) if words and last.startswith(".") else 1.0
        shares.append((share, value(" ".join(words if share < 1.0 else [*words, last]))))
    return cumulated(shares)


def with_s(word: str) -> str:
    """The regular English plural, and the third person of a verb."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")


def english_noun(text: str) -> tuple[str, str]:
    """Singular and plural of `foot/feet`; a regular plural is left out."""
    singular, _, plural = text.partition("/")
    return singular, plural or with_s(singular)


def english_verb(text: str) -> EnglishVerb:
    """Reads `give/gave/given`, `wait_for` (stays together), `turn~on` (the particle can move)."""
    base, *irregular = text.split("/")
    base, _, particle = base.partition("~")
    base, _, rest = base.partition("_")
    rest = " " + rest.replace("_", " ") if rest else ""
    ied = base[:-1] + "ied" if base.endswith("y") and base[-2] not in "aeiou" else base + "ed"
    past = irregular[0] if irregular else base + "d" if base.endswith("e") else ied
    participle = irregular[1] if len(irregular) > 1 else past
    ing = irregular[2] if len(irregular) > 2 else base.removesuffix("e") + "ing"
    return EnglishVerb(base + rest, with_s(base) + rest, past + rest, participle + rest, ing + rest, particle)


def noun(text: str, group: str) -> Noun:
    """Reads `m Junge Jungen Jungen = boy`: gender, singular, plural, and for weak nouns the oblique singular."""
    german, english = text.split(" = ")
    gender, singular, plural, *oblique = german.split()
    other = oblique[0] if oblique else singular
    dative = plural if plural.endswith(("n", "s")) else plural + "n"
    pronoun = {"m": "he", "f": "she", "n": "it"}[gender] if group == "person" else "it"
    if singular == "Mädchen":
        pronoun = "she"
    forms = (singular, other, other, plural, plural, dative)
    return Noun(forms, GENDERS[gender], options(english, english_noun), pronoun, group)


def compound(modifier: str, head: Noun) -> Noun:
    """A noun put before another one: Küchen + Tisch = Küchentisch, `kitchen table`."""
    first, english = modifier.split(" = ")
    shares = [
        (share_first * share, (f"{word} {singular}", f"{word} {plural}"))
        for share_first, word in shares_of(options(english))
        for share, (singular, plural) in shares_of(head.english)
    ]
    forms = tuple(first + form.lower() for form in head.german)
    return Noun(forms, head.gender, cumulated(shares), "it", head.group)


def read(block: str) -> list[str]:
    """The entries of a block, parted by semicolons and ends of lines."""
    return [entry.strip() for entry in block.replace("\n", ";").split(";") if entry.strip()]


def adjective(text: str) -> Adjective:
    """An adjective out of `German[/stem] = English`."""
    german, english = text.split(" = ")
    word, _, stem = german.partition("/")
    return Adjective(word, stem or word.removesuffix("e"), options(english))


def verb(text: str) -> Verb:
    """A verb out of a line of toy_words.py."""
    german, english = text.split(" = ")
    left, _, right = german.rpartition(": ")
    groups, *government = left.split() if left else [""]
    infinitive, third, *rest = right.split()
    prefix, _, infinitive = infinitive.rpartition("+")
    found = tuple(entry for group in groups.split(",") if group for entry in NOUNS[group])
    return Verb(
        infinitive,
        third,
        prefix,
        participle=rest[-1],
        with_sein=rest[0] == "ist",
        english=options(english, english_verb),
        objects=found,
        preposition=government[0] if len(government) == 2 else "",
        case=CASES[government[-1] if government else "acc"],
        stative=infinitive in toy_words.STATIVE.split(),
    )


NOUNS = {group: [noun(entry, group) for entry in read(block)] for group, block in toy_words.NOUNS.items()}
BY_WORD = {entry.german[0]: entry for entries in NOUNS.values() for entry in entries}
COMPOUNDS = {
    group: [
        compound(modifier, head)
        for modifier in read(toy_words.MODIFIERS)
        for head in entries
        if head.german[0] in toy_words.HEADS.split()
    ]
    for group, entries in NOUNS.items()
}
ADJECTIVES = {group: [adjective(entry) for entry in read(block)] for group, block in toy_words.ADJECTIVES.items()}


def pair(text: str) -> tuple[str, Options]:
    """A German word and its English options."""
    german, english = text.split(" = ")
    return german, options(english)


def modal(text: str) -> Modal:
    """A modal verb out of `forms = asserted || negated`."""
    forms, english = text.split(" = ")
    asserted, negated = english.split("||")
    singular, plural = forms.split()
    return Modal((singular, plural), options(asserted), options(negated))


def preposition(text: str) -> tuple[str, int, Options]:
    """Reads `in dat = in .75 | inside .25`: German, case, English."""
    (german, case), english = text.split(" = ")[0].split(), text.split(" = ")[1]
    return german, CASES[case], options(english)


VERBS = {frame: [verb(entry) for entry in read(block)] for frame, block in toy_words.VERBS.items()}
MODALS = [modal(entry) for entry in read(toy_words.MODALS)]
TIMES = {kind: [Time(*pair(entry), kind=kind) for entry in read(block)] for kind, block in toy_words.TIMES.items()}
PREPOSITIONS = {use: [preposition(entry) for entry in read(block)] for use, block in toy_words.PREPOSITIONS.items()}
MELTED = dict(entry.split(" = ") for entry in read(toy_words.MELTED))
OTHERS = {use: [pair(entry) for entry in read(block)] for use, block in toy_words.OTHERS.items()}
NAMES = {pronoun: text.split() for pronoun, text in toy_words.NAMES.items()}
