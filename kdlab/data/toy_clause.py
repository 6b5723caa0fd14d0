"""A clause of the toy grammar: what it says, and how German and English say it.

German: finite verb second, first in questions, last in subordinate clauses; separable prefixes, participles and
infinitives at the end. English: tense, order and contractions chosen anew each time, within what the German allows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from kdlab.data.toy_lexicon import Adjective, Modal, Options, Time, Verb
from kdlab.data.toy_phrase import Name, Nominal, Phrase, Preposition, Pronoun, Random, german_prepositional, pick

SEIN, WAR, HABEN = ("bin", "ist", "sind"), ("war", "war", "waren"), ("habe", "hat", "haben")
BE, WAS = ("am", "is", "are"), ("was", "was", "were")
HAVE, DO, WANT = ("have", "has", "have"), ("do", "does", "do"), ("want", "wants", "want")
NEGATED = {"am": "am not", "can": "can't", "will": "won't"}  # else: n't behind it

Order = Literal["main", "final", "question"]


class EnglishVerbs(NamedTuple):
    """The verbs of an English clause: adverbs like `often` stand between the auxiliary and the others."""

    auxiliary: str
    others: str
    particle: str


class Clause(NamedTuple):
    """The content of a clause, in no language yet."""

    subject: Nominal
    verb: Verb | None = None  # None: `subject is adjective`
    adjective: Adjective | None = None
    degree: tuple[str, Options] | None = None
    past: bool = False  # the perfect; with an adjective `war`
    modal: Modal | None = None
    negated: bool = False
    time: Time | None = None
    number: tuple[str, Options] | None = None  # in a time like `vor drei Tagen`
    often: tuple[str, Options] | None = None
    direct: Nominal | None = None  # also the object of a verb with preposition or dative
    indirect: Nominal | None = None
    phrases: tuple[tuple[Preposition, Phrase | Name], ...] = ()
    front: str = "subject"  # what stands before the verb of a German main clause: subject, time or object

    def with_kein(self) -> bool:
        """Whether German negates the object (kein Auto) and not the verb."""
        return self.negated and isinstance(self.direct, Phrase) and self.direct.determiner == "kein"

    def german(self, order: Order = "main") -> str:
        """The clause in German without capital and full stop."""
        verb = self.verb
        finite, prefix, rest = self._german_verbs()
        subject = [self.subject.german(0)]
        time = [self.time.german.format(n=self.number[0] if self.number else "")] if self.time else []
        direct = []
        if verb and self.direct:
            if verb.preposition:
                direct.append(german_prepositional(verb.preposition, verb.case, self.direct))
            else:
                direct.append(self.direct.german(verb.case))
        front: list[str] = []
        if order == "main":
            moved = {"subject": subject, "time": time, "object": direct}[self.front]
            front, moved[:] = moved[:], []
        nouns: list[str] = []
        pronouns: list[str] = []  # these come before the time
        if self.indirect:
            (pronouns if isinstance(self.indirect, Pronoun) else nouns).append(self.indirect.german(2))
        behind = bool(verb and verb.preposition)
        if not behind:
            (pronouns if isinstance(self.direct, Pronoun) else nouns).extend(direct)
        words = subject + pronouns + time
        if self.often:
            words.append(self.often[0])
        words += nouns
        if self.negated and not self.with_kein():
            words.append("nicht")
        if behind:
            words += direct
        words += [german_prepositional(word, case, nominal) for (word, case, _), nominal in self.phrases]
        if self.adjective:
            words += [self.degree[0], self.adjective.german] if self.degree else [self.adjective.german]
        if order == "final":
            return " ".join([*words, *rest, prefix + finite])
        return " ".join([*front, finite, *words, *rest, *([prefix] if prefix else [])])

    def _german_verbs(self) -> tuple[str, str, list[str]]:
        """(finite verb, its separable prefix, participle or infinitive)."""
        verb, agreement = self.verb, self.subject.agreement
        if verb is None:
            return (WAR if self.past else SEIN)[agreement], "", []
        if self.modal:
            return self.modal.german[agreement == 2], "", [verb.prefix + verb.infinitive]
        if self.past:
            return (SEIN if verb.with_sein else HABEN)[agreement], "", [verb.participle]
        first = verb.infinitive[:-1] if verb.third.endswith("t") else verb.third  # ich mache, but ich mag, ich weiß
        return (first, verb.third, verb.infinitive)[agreement], verb.prefix, []

    def english(self, random: Random, order: Order = "main") -> str:
        """The clause in English without capital and full stop."""
        negated, determiner = self.negated, None
        if self.with_kein():  # does not buy a car / buys no car
            negated = self.modal is not None or random() < 0.75
            determiner = "nicht ein" if negated else "kein"
        verbs = self._english_verbs(random, supported=negated or order == "question", negated=negated)
        auxiliary, words = verbs.auxiliary, []
        if negated and random() < 0.6:
            auxiliary = "cannot" if auxiliary == "can" else auxiliary + " not"
        elif negated:
            auxiliary = NEGATED.get(auxiliary, auxiliary + "n't")
        subject = self.subject.english(random, is_subject=True)
        words += [auxiliary, subject] if order == "question" else [subject, auxiliary]
        if self.often:
            words.append(pick(self.often[1], random))
        words.append(verbs.others)
        words += self._english_objects(random, verbs.particle, determiner)
        for (_, _, english), nominal in self.phrases:
            words += [pick(english, random), nominal.english(random)]
        if self.time:
            time = pick(self.time.english, random)
            if self.number:
                time = time.format(n=pick(self.number[1], random))
            if order == "main" and (random() < 0.6 if self.front == "time" else random() >= 0.75):
                words.insert(0, time + ("," if random() < 0.6 else ""))
            else:
                words.append(time)
        return " ".join(filter(None, words))

    def _english_objects(self, random: Random, particle: str, determiner: str | None) -> list[str]:
        if self.direct is None:
            return [particle]
        direct = self.direct.english(random, determiner=determiner)
        if particle:  # turns on the lamp / turns the lamp on / turns it on
            early = not isinstance(self.direct, Pronoun) and random() < 0.6
            return [particle, direct] if early else [direct, particle]
        if self.indirect:  # gives the man the book / gives the book to the man
            indirect = self.indirect.english(random)
            return [indirect, direct] if random() < 0.6 else [direct, "to", indirect]
        return [direct]

    def _english_verbs(self, random: Random, *, supported: bool, negated: bool) -> EnglishVerbs:
        """Tense and aspect; `supported`: a negation or a question, which takes `do` where there is no auxiliary."""
        agreement, kind = self.subject.agreement, self.time.kind if self.time else ""
        if self.verb is None:
            assert self.adjective is not None
            words = [pick(self.degree[1], random)] if self.degree else []
            words.append(pick(self.adjective.english, random))
            return EnglishVerbs((WAS if self.past else BE)[agreement], " ".join(words), "")
        form = pick(self.verb.english, random)
        particle = form.particle
        if self.modal:
            first, _, rest = pick(self.modal.negated if negated else self.modal.english, random).partition(" ")
            infinitive = f"{rest} {form.base}" if rest else form.base
            if first in ("have", "want"):
                if supported:
                    return EnglishVerbs(DO[agreement], f"{first} {infinitive}", particle)
                return EnglishVerbs("", f"{(HAVE if first == 'have' else WANT)[agreement]} {infinitive}", particle)
            return EnglishVerbs(BE[agreement] if first == "be" else first, infinitive, particle)
        if self.past:
            if kind == "past" or self.often or random() < 0.65:
                return EnglishVerbs("did", form.base, particle) if supported else EnglishVerbs("", form.past, particle)
            return EnglishVerbs(HAVE[agreement], form.participle, particle)
        if kind == "future":
            if random() < 0.7:
                return EnglishVerbs("will", form.base, particle)
            return EnglishVerbs(BE[agreement], f"going to {form.base}", particle)
        if not (self.verb.stative or self.often or kind == "habit"):
            progressive = random() < 0.8 if kind == "now" else random() >= 0.65
            if progressive:
                return EnglishVerbs(BE[agreement], form.ing, particle)
        if supported:
            return EnglishVerbs(DO[agreement], form.base, particle)
        return EnglishVerbs("", form.third if agreement == 1 else form.base, particle)
