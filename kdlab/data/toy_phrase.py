"""Noun phrases, names and pronouns of the toy grammar, said in both languages.

Cases are 0 nominative, 1 accusative, 2 dative; `agreement` is what the verb agrees with: 0 I, 1 he/she/it, 2 we/they.
`german(case)` is fixed, `english(random)` chooses among translations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kdlab.data.toy_lexicon import MELTED, Adjective, Noun, Options, options

Random = Callable[[], float]  # uniform in [0, 1)
Preposition = tuple[str, int, Options]  # German, case, English

# columns: masculine, feminine, neuter, plural
DER = (("der", "die", "das", "die"), ("den", "die", "das", "die"), ("dem", "der", "dem", "den"))
DIES = (
    ("dieser", "diese", "dieses", "diese"),
    ("diesen", "diese", "dieses", "diese"),
    ("diesem", "dieser", "diesem", "diesen"),
)
EIN = (("", "e", "", "e"), ("en", "e", "", "e"), ("em", "er", "em", "en"))
# endings of adjectives: after der, after ein, without article (only in the plural here)
WEAK = (("e", "e", "e", "en"), ("en", "e", "e", "en"), ("en", "en", "en", "en"))
MIXED = (("er", "e", "es", "en"), ("en", "e", "es", "en"), ("en", "en", "en", "en"))
STRONG_PLURAL = ("e", "e", "en")

POSSESSIVES = {"mein": "my", "sein": "his", "ihr": "her .65 | their .35", "unser": "our"}
# English determiner: singular, plural
ENGLISH = {
    "der": (options("the"), options("the")),
    "dies": (options("this .75 | that .25"), options("these .75 | those .25")),
    "ein": (options("a"), ((0.75, ""), (1.0, "some"))),
    "kein": (options("no"), options("no")),
    "nicht ein": (options("a"), options("any")),  # `kein` where the verb is negated
    "": (options("a"), ((1.0, ""),)),  # numbers
    **{german: (options(english),) * 2 for german, english in POSSESSIVES.items()},
}
VOWELS = tuple("aeiouAEIOU")


def pick(options: Options, random: Random) -> Any:
    """One of the options, by its probability."""
    if len(options) == 1:
        return options[0][1]
    number = random()
    for limit, value in options:
        if number < limit:
            return value
    raise AssertionError(number)


class Pronoun(NamedTuple):
    """A personal pronoun: German nominative, accusative, dative; English subject and object form."""

    forms: tuple[str, str, str]
    english_forms: tuple[str, str]
    agreement: int

    def german(self, case: int) -> str:
        return self.forms[case]

    def english(self, random: Random, *, is_subject: bool = False, determiner: str | None = None) -> str:
        return self.english_forms[0 if is_subject else 1]

    def pronoun(self) -> Pronoun:
        return self


ICH = Pronoun(("ich", "mich", "mir"), ("I", "me"), 0)
WIR = Pronoun(("wir", "uns", "uns"), ("we", "us"), 2)
THEY = Pronoun(("sie", "sie", "ihnen"), ("they", "them"), 2)
THIRD = {"he": "him", "she": "her", "it": "it"}
BY_GENDER = (("er", "ihn", "ihm"), ("sie", "sie", "ihr"), ("es", "es", "ihm"))


def third_person(gender: int, english: str) -> Pronoun:
    """er, sie, es: by the gender of the German noun, and in English by what it is."""
    return Pronoun(BY_GENDER[gender], (english, THIRD[english]), 1)


class Name(NamedTuple):
    """A person or a city: no article, no inflection."""

    word: str
    translation: str
    gender: int
    agreement: int = 1

    def german(self, case: int) -> str:
        return self.word

    def english(self, random: Random, *, is_subject: bool = False, determiner: str | None = None) -> str:
        return self.translation

    def pronoun(self) -> Pronoun:
        return third_person(self.gender, ("he", "she", "it")[self.gender])


class Phrase(NamedTuple):
    """Determiner, adjective and noun; determiners: der, dies, ein (none in the plural), kein, possessives, ''."""

    noun: Noun
    determiner: str = "der"
    plural: bool = False
    adjective: Adjective | None = None
    degree: tuple[str, Options] | None = None
    number: tuple[str, Options] | None = None  # then determiner is '' and plural is True

    @property
    def agreement(self) -> int:
        return 2 if self.plural else 1

    def german(self, case: int) -> str:
        column = 3 if self.plural else self.noun.gender
        determiner, endings = self.determiner, MIXED
        if determiner == "der":
            first, endings = DER[case][column], WEAK
        elif determiner == "dies":
            first, endings = DIES[case][column], WEAK
        elif self.number:
            first = self.number[0]
        else:
            first = determiner + EIN[case][column] if determiner != "ein" or not self.plural else ""
        words = [first] if first else []
        if self.adjective:
            bare = self.number or (determiner == "ein" and self.plural)
            if self.degree:
                words.append(self.degree[0])
            words.append(self.adjective.stem + (STRONG_PLURAL[case] if bare else endings[case][column]))
        words.append(self.noun.german[case + 3 * self.plural])
        return " ".join(words)

    def english(self, random: Random, *, is_subject: bool = False, determiner: str | None = None) -> str:
        words = pick(self.noun.english, random)[self.plural]
        if self.adjective:
            words = f"{pick(self.adjective.english, random)} {words}"
            if self.degree:
                words = f"{pick(self.degree[1], random)} {words}"
        if self.number:
            return f"{pick(self.number[1], random)} {words}"
        first = pick(ENGLISH[determiner or self.determiner][self.plural], random)
        if first == "a" and words.startswith(VOWELS):
            first = "an"
        return f"{first} {words}" if first else words

    def pronoun(self) -> Pronoun:
        return THEY if self.plural else third_person(self.noun.gender, self.noun.pronoun)


Nominal = Phrase | Name | Pronoun


def german_prepositional(preposition: str, case: int, nominal: Nominal) -> str:
    """`in dem Haus` melted to `im Haus`."""
    text = f"{preposition} {nominal.german(case)}"
    if isinstance(nominal, Phrase) and nominal.determiner == "der":
        first, second, rest = text.split(" ", 2)
        short = MELTED.get(f"{first} {second}")
        return f"{short} {rest}" if short else text
    return text
