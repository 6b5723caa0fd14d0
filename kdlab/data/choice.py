"""Which of a row's hypotheses become its labels, and the count of what became of the others.

The rules come before the choice: a hypothesis that breaks one is no candidate any more, and the next takes its place. A
row whose hypotheses all break one gets no label; it counts under the rule that its best one broke.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, final

from kdlab.data.candidates import Candidate, Row
from kdlab.data.label_filters import MISSING, RULES, LabelFilters

CHOICES = ("first", "bleu", "chrf", "all")
Closeness = Callable[[Sequence[str], str], Sequence[float]]  # (texts, reference): how close each is, more is closer


@final
class Choice:
    """Chooses row by row and counts.

    Args:
        choose: `first`: the best one left. `bleu`, `chrf`: the one closest to the row's gold target, the better ranked
            of equals; where a row has no gold target, the first. `all`: every one that is left.
        closeness: to the gold target, for `bleu` and `chrf`.
    Source: Kim & Rush 2016 (sequence-level interpolation) for the choice of the closest.
    """

    def __init__(self, choose: str, filters: LabelFilters, closeness: Closeness | None = None):
        self._choose, self._filters, self._closeness = choose, filters, closeness
        self._hypotheses: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._ranks: Counter[int] = Counter()
        self._replaced = 0

    def labels(self, row: Row) -> list[Candidate]:
        """The labels of a row, none, one or (with `all`) several in the order of their ranks."""
        broken = [self._filters.broken(row, candidate) for candidate in row.candidates]
        self._hypotheses.update(rule for rule in broken if rule is not None)
        left = [candidate for candidate, rule in zip(row.candidates, broken, strict=True) if rule is None]
        if not left:
            self._rows[(broken[0] if broken else None) or MISSING] += 1
            return []
        self._replaced += broken[0] is not None
        chosen = left if self._choose == "all" else [self._closest(row, left)]
        self._ranks.update(candidate.rank for candidate in chosen)
        return chosen

    def counts(self) -> dict[str, Any]:
        """What happened so far, as plain values.

        rules: of each, how many hypotheses it dropped and how many rows it left without a label. replaced: rows whose
        best hypothesis was dropped and that took another one. ranks: labels of each rank, from 0.
        """
        return {
            "rules": {
                rule: {"hypotheses": self._hypotheses[rule], "rows": self._rows[rule]} for rule in (MISSING, *RULES)
            },
            "replaced": self._replaced,
            "ranks": [self._ranks[rank] for rank in range(max(self._ranks, default=-1) + 1)],
        }

    def _closest(self, row: Row, left: list[Candidate]) -> Candidate:
        if self._closeness is None or len(left) == 1 or not row.gold.strip():
            return left[0]
        scores = self._closeness([candidate.text for candidate in left], row.gold)
        return left[max(range(len(left)), key=lambda at: (scores[at], -at))]
