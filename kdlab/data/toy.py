"""A synchronous German-English grammar: the built-in corpus, as long as wanted, from nothing.

The German side is drawn first; the English one translates it with choices drawn anew at each occurrence (synonyms,
places of adverbs, clauses and objects, tenses, contractions), as human references do. The likeliest choice is always
listed first, so a mode exists: `Sentence.english(mode)` is what a perfect teacher says.

Line i of a split is a function of (split, seed, i), and the hash of its German sentence belongs to the split: splits
share no source sentence, whatever their seeds. Whoever changes any line raises VERSION.
"""

from __future__ import annotations

import random as stdlib_random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kdlab.data import toy_lexicon as lexicon
from kdlab.data.toy_clause import Clause
from kdlab.data.toy_lexicon import OTHERS, PREPOSITIONS, Noun, Options
from kdlab.data.toy_phrase import ICH, POSSESSIVES, WIR, Name, Nominal, Phrase, Preposition, Random, pick
from kdlab.errors import UserError, did_you_mean

VERSION = 1

BUCKETS = {"train": range(2, 8), "valid": range(1), "test": range(1, 2)}  # of the hash of the source, modulo 8

PEOPLE = lexicon.NOUNS["person"]
PLACES = lexicon.NOUNS["place"] + lexicon.NOUNS["room"]
ALIVE = {"person", "animal"}
SUBJECTS = PEOPLE + lexicon.NOUNS["animal"]
NAMES = [Name(word, word, gender) for gender, words in enumerate(lexicon.NAMES.values()) for word in words]
CITIES = [Name(german, english[0][1], 2) for german, english in OTHERS["city"]]
DETERMINERS = ("dies", *POSSESSIVES)
DIGITS = [(str(number), ((1.0, str(number)),)) for number in range(13, 100)]
FRAME_COUNTS = {
    "transitive": 9,
    "intransitive": 3,
    "ditransitive": 3,
    "prepositional": 3,
    "dative": 1,
    "motion": 2,
    "location": 1,
    "adjective": 2,
}
FRAMES = [frame for frame, count in FRAME_COUNTS.items() for _ in range(count)]
TO_CITY: Preposition = ("nach", 2, ((1.0, "to"),))
IN_CITY: Preposition = ("in", 2, ((1.0, "in"),))


def mode() -> float:
    """In place of a random number: always the likeliest choice."""
    return 0.0


class Sentence(NamedTuple):
    """One or two clauses. `link`: a conjunction; kind: simple, question, clausal (dass), and, sub_last, sub_first."""

    kind: str
    first: Clause  # the main clause
    second: Clause | None = None
    link: tuple[str, Options] | None = None
    same_subject: bool = False  # whichever clause comes second says it by a pronoun

    def clauses(self, *, second_comes_first: bool) -> tuple[Clause, Clause]:
        """Both clauses, the subject a pronoun in the one that is said later, if it is the same."""
        first, second = self.first, self.second
        assert second is not None
        if self.same_subject:
            pronoun = first.subject.pronoun()
            if second_comes_first:
                return first._replace(subject=pronoun), second._replace(subject=first.subject)
            return first, second._replace(subject=pronoun)
        return first, second

    def german(self) -> str:
        """The source sentence."""
        if self.second is None:
            text = self.first.german("question" if self.kind == "question" else "main")
            return _sentence(text, "?" if self.kind == "question" else ".")
        link = self.link[0] if self.link else "dass"
        first, second = self.clauses(second_comes_first=self.kind == "sub_first")
        if self.kind == "sub_first":  # the clause takes the first place, so the verb follows it
            return _sentence(f"{link} {second.german('final')}, {first.german('question')}", ".")
        return _sentence(f"{first.german()}, {link} {second.german('main' if self.kind == 'and' else 'final')}", ".")

    def english(self, random: Random) -> str:
        """A translation of it; `random` makes the choices."""
        if self.second is None:
            is_question = self.kind == "question"
            return _sentence(
                self.first.english(random, "question" if is_question else "main"), "?" if is_question else "."
            )
        if self.kind == "clausal":
            first, second = self.clauses(second_comes_first=False)
            that = "that " if random() < 0.65 else ""
            return _sentence(f"{first.english(random)} {that}{second.english(random, 'final')}", ".")
        assert self.link is not None
        link = pick(self.link[1], random)
        if self.kind == "and":
            first, second = self.clauses(second_comes_first=False)
            comma = "," if random() < 0.7 else ""
            return _sentence(f"{first.english(random)}{comma} {link} {second.english(random, 'final')}", ".")
        front = random() < 0.65 if self.kind == "sub_first" else random() >= 0.7
        first, second = self.clauses(second_comes_first=front)
        if front:
            return _sentence(f"{link} {second.english(random, 'final')}, {first.english(random)}", ".")
        return _sentence(f"{first.english(random)} {link} {second.english(random, 'final')}", ".")


def generate(split: str, num_lines: int, seed: int) -> Iterator[tuple[str, str]]:
    """The first `num_lines` (German, English) pairs of a split: train, valid or test."""
    for german, sentence, random in drawn(split, num_lines, seed):
        yield german, sentence.english(random)


def drawn(split: str, num_lines: int, seed: int) -> Iterator[tuple[str, Sentence, Random]]:
    """The lines before they are translated: German, the sentence, and the random numbers for its English."""
    if split not in BUCKETS:
        raise UserError(
            f"the toy corpus has no split {split!r}{did_you_mean(split, BUCKETS) or '.'} "
            "Each split holds its own sentences, so that scores are honest; write train, valid or test"
        )
    generator = stdlib_random.Random()
    random, bucket = generator.random, BUCKETS[split]
    stream = (abs(seed) * 2 + (seed < 0)) * len(BUCKETS) + list(BUCKETS).index(split)
    for line in range(num_lines):
        generator.seed((stream << 48) + line)
        while True:
            sentence = draw_sentence(random)
            german = sentence.german()
            if zlib.crc32(german.encode()) % 8 in bucket:
                break
        yield german, sentence, random


def draw_sentence(random: Random) -> Sentence:
    """One sentence, simple or of two clauses."""
    number = random()
    if number < 0.38:
        return Sentence("simple", draw_clause(random))
    if number < 0.44:
        return Sentence("question", draw_clause(random, plain=True, asked=True))
    if number < 0.58:
        return _draw_and(random)
    if number < 0.7:
        return _draw_clausal(random)
    first, second = draw_clause(random, plain=True), draw_clause(random, plain=True)
    kind = "sub_last" if random() < 0.6 else "sub_first"
    same = random() < 0.4
    if same:
        second = second._replace(subject=first.subject)
    return Sentence(kind, first, second, any_of(OTHERS["because"], random), same)


def _draw_and(random: Random) -> Sentence:
    first, second = draw_clause(random), draw_clause(random, plain=True)
    same = random() < 0.3
    if same:
        second = second._replace(subject=first.subject)
    return Sentence("and", first, second, any_of(OTHERS["and"], random), same)


def _draw_clausal(random: Random) -> Sentence:
    subject = draw_subject(random, PEOPLE)
    first = Clause(subject, any_of(lexicon.VERBS["clausal"], random), past=random() < 0.3)
    second, same = draw_clause(random, plain=True), random() < 0.35
    return Sentence("clausal", first, second._replace(subject=subject) if same else second, None, same)


def draw_clause(random: Random, *, plain: bool = False, asked: bool = False) -> Clause:
    """One clause; `plain`: nothing in front of the verb but the subject; `asked`: not negated."""
    frame = any_of(FRAMES, random)
    negated = not asked and random() < 0.15
    past = random() < 0.35
    if frame == "adjective":
        return _draw_adjective(random, past, negated)
    verb = any_of(lexicon.VERBS[frame], random)
    subject = draw_subject(random, SUBJECTS if frame in ("intransitive", "motion") else PEOPLE)
    modal = any_of(lexicon.MODALS, random) if not past and random() < 0.25 else None
    kind = ("past" if random() < 0.5 else "free") if past else any_of(("free", "future", "habit", "now"), random)
    time = any_of(lexicon.TIMES[kind], random) if random() < 0.45 else None
    often = any_of(OTHERS["often"], random) if not (time or negated or modal) and random() < 0.2 else None
    direct = draw_object(random, any_of(verb.objects, random)) if verb.objects else None
    if negated and isinstance(direct, Phrase) and direct.determiner == "ein" and not verb.preposition:
        direct = direct._replace(determiner="kein")
    front = "subject"
    if not plain:
        if time and random() < 0.45:
            front = "time"
        elif _marks_accusative(direct) and verb.case == 1 and not verb.preposition and random() < 0.1:
            front = "object"
    return Clause(
        subject,
        verb,
        past=past,
        modal=modal,
        negated=negated,
        time=time,
        number=any_of(OTHERS["number"], random) if time and "{n}" in time.german else None,
        often=often,
        direct=direct,
        indirect=draw_object(random, any_of(PEOPLE, random)) if frame == "ditransitive" else None,
        phrases=_draw_phrases(random, frame),
        front=front,
    )


def _draw_adjective(random: Random, past: bool, negated: bool) -> Clause:
    subject = draw_subject(random, SUBJECTS) if random() < 0.6 else draw_phrase(random, draw_noun(random))
    alive = not isinstance(subject, Phrase) or subject.noun.group in ALIVE
    degree = any_of(OTHERS["degree"], random) if random() < 0.5 else None
    adjective = draw_adjective(random, alive)
    time = any_of(lexicon.TIMES["past" if past else "now"], random) if random() < 0.15 else None
    number = any_of(OTHERS["number"], random) if time and "{n}" in time.german else None
    if isinstance(subject, Phrase):
        subject = subject._replace(adjective=None, degree=None)
    return Clause(subject, None, adjective, degree, past=past, negated=negated, time=time, number=number)


def _draw_phrases(random: Random, frame: str) -> tuple[tuple[Preposition, Phrase | Name], ...]:
    """Where or where to, and with whom."""
    found: list[tuple[Preposition, Phrase | Name]] = []
    number = random()
    if frame not in ("motion", "intransitive") and number < 0.15:
        found.append((any_of(PREPOSITIONS["with"], random), draw_phrase(random, any_of(PEOPLE, random))))
    if frame == "motion" or frame == "location" or number > 0.82:
        use, city = ("whereto", TO_CITY) if frame == "motion" else ("where", IN_CITY)
        if random() < 0.2:
            found.append((city, any_of(CITIES, random)))
        else:
            place = Phrase(any_of(PLACES, random), "der")
            if random() < 0.3:
                place = place._replace(adjective=draw_adjective(random, False))
            found.append((any_of(PREPOSITIONS[use], random), place))
    return tuple(found)


def draw_noun(random: Random) -> Noun:
    """A thing, sometimes a compound."""
    group = any_of(("thing", "device", "text", "food", "opening", "clothing"), random)
    return any_of(lexicon.NOUNS[group], random)


def draw_subject(random: Random, nouns: Sequence[Noun]) -> Nominal:
    """A name, a pronoun or a phrase."""
    number = random()
    if number < 0.2:
        return any_of(NAMES, random)
    if number < 0.35:
        if random() < 0.5:
            return ICH if random() < 0.5 else WIR
        return any_of(NAMES, random).pronoun() if random() < 0.7 else Phrase(PEOPLE[0], plural=True).pronoun()
    return draw_phrase(random, any_of(nouns, random))


def draw_object(random: Random, noun: Noun) -> Nominal:
    """A person can be a name or a pronoun; a thing can be a compound."""
    if noun.group == "person" and random() < 0.3:
        return any_of(NAMES, random) if random() < 0.6 else any_of((ICH, WIR, NAMES[0].pronoun()), random)
    compounds = lexicon.COMPOUNDS[noun.group]
    if compounds and random() < 0.35:
        noun = any_of(compounds, random)
    return draw_phrase(random, noun)


def draw_phrase(random: Random, noun: Noun) -> Phrase:
    """A noun with a determiner or a number, often with an adjective."""
    number, plural = random(), random() < 0.22
    adjective = draw_adjective(random, noun.group in ALIVE) if random() < 0.35 else None
    degree = any_of(OTHERS["degree"], random) if adjective and random() < 0.12 else None
    if number < 0.07:
        count = any_of(OTHERS["number"] if random() < 0.7 else DIGITS, random)
        return Phrase(noun, "", True, adjective, degree, count)
    determiner = "der" if number < 0.55 else "ein" if number < 0.82 else any_of(DETERMINERS, random)
    return Phrase(noun, determiner, plural, adjective, degree)


def draw_adjective(random: Random, alive: bool) -> lexicon.Adjective:
    """An adjective that suits living or lifeless things."""
    return any_of(lexicon.ADJECTIVES["any" if random() < 0.5 else "alive" if alive else "dead"], random)


def any_of(items: Sequence[Any], random: Random) -> Any:
    """One of the items, all equally likely."""
    return items[int(random() * len(items))]


def _marks_accusative(nominal: Nominal | None) -> bool:
    """Whether the German form alone tells that this is the object: den Mann, not die Frau."""
    return (
        isinstance(nominal, Phrase) and not nominal.plural and nominal.noun.gender == 0 and nominal.determiner == "der"
    )


def _sentence(text: str, mark: str) -> str:
    return text[0].upper() + text[1:] + mark
