"""Which terms are summed, with which weights, over which rows, divided by what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from kdlab.types import Batch, Origin, Unit


@runtime_checkable
class TokenTerm(Protocol):
    """A pure function on N real positions; returns nats for each."""

    needs_teacher: ClassVar[bool]

    def __call__(
        self,
        student_logits_NV: Float[Tensor, "N V"],
        teacher_logits_NV: Float[Tensor, "N V"] | None,
        tgt_N: Int[Tensor, "N"],
    ) -> Float[Tensor, "N"]: ...

    def formula(self) -> str: ...


@dataclass(frozen=True)
class WeightedTerm:
    """A term with its place in the objective.

    Args:
        weight: factor of the term, before the mixture's share.
        on: rows that it looks at: gold targets, pseudo-labels or all.
        per: what its sum is divided by.
        mixed: one side of the gold-pseudo mixture. With mix_by=sampling both sides are divided by the units of all
            rows, so that the drawn shares weigh them; with mix_by=weights each is divided by its own units and
            multiplied by its share (mix for gold, 1 - mix for pseudo).
    """

    weight: float
    on: Origin
    per: Unit
    term: TokenTerm
    mixed: bool = False


@dataclass(frozen=True)
class Objective:
    """Weighted sum of terms, each divided by its units counted over the whole optimizer step.

        loss = sum_t  weight_t * (sum of term_t over its rows) / units_t

    Source: the deck's interpolation, triple and hybrid losses, with weights named instead of alpha.
    """

    terms: Mapping[str, WeightedTerm]
    mix: float = 1.0
    mix_by: Literal["sampling", "weights"] = "sampling"

    @property
    def active(self) -> dict[str, WeightedTerm]:
        """The terms whose weight is not zero: all that is computed."""
        return {name: t for name, t in self.terms.items() if t.weight > 0}

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with a teacher."""
        return any(t.term.needs_teacher for t in self.active.values())

    def units(self, step: Iterable[Batch]) -> dict[str, int]:
        """What each term's sum is divided by: counted from masks over the microbatches of one optimizer step."""
        batches = list(step)
        return {name: sum(b.num_units(self.divides(t), t.per) for b in batches) for name, t in self.active.items()}

    def scales(self, units: Mapping[str, int]) -> dict[str, float]:
        """Factor of each term's sum: weight (and share) over units; a term without rows in this step counts nothing."""
        return {n: self.weight(t) / units[n] if units[n] else 0.0 for n, t in self.active.items()}

    def divides(self, term: WeightedTerm) -> Origin:
        """Rows whose units divide a term."""
        return "all" if term.mixed and self.mix_by == "sampling" else term.on

    def weight(self, term: WeightedTerm) -> float:
        """Weight of a term with the mixture's share in it."""
        if term.mixed and self.mix_by == "weights":
            return term.weight * (self.mix if term.on == "gold" else 1.0 - self.mix)
        return term.weight

    def formula(self) -> str:
        """The resolved objective with its numbers, one term a line."""
        lines = [
            f"{self.weight(t):g} * [{t.term.formula()}] on {t.on} rows, divided by {t.per}s of {self.divides(t)} rows"
            for t in self.active.values()
        ]
        return "loss = " + "\n     + ".join(lines)
