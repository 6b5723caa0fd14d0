"""Which terms are summed, with which weights, over which rows, divided by what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened, Teacher
from kdlab.types import Batch, Origin, TopK, Unit


@runtime_checkable
class TokenTerm(Protocol):
    """A pure function on N real positions; returns nats for each."""

    needs_teacher: ClassVar[bool]

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]: ...

    def formula(self) -> str: ...


@runtime_checkable
class AnalyticTerm(Protocol):
    """A token term that also knows its gradient: faster than autograd through `__call__`, and tested against it."""

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """Adds scale * d(sum of nats)/d(student logits) to `d_logits_NV` in place; returns nats of each position."""
        ...


@runtime_checkable
class BiasedTerm(Protocol):
    """A token term that looks behind the biases of both heads: only a defect does (ancestor.py)."""

    def biased(
        self,
        student_logits_NV: Float[Tensor, "N V"],
        teacher: Teacher,
        student_bias_V: Float[Tensor, "V"] | None,
        teacher_bias_V: Float[Tensor, "V"] | None,
    ) -> Float[Tensor, "N"]: ...


@runtime_checkable
class HiddenTerm(Protocol):
    """A pure function on hidden states of a student layer and a teacher layer at the same real positions."""

    needs_teacher: ClassVar[bool]

    @property
    def stack(self) -> Literal["encoder", "decoder"]: ...

    @property
    def projection(self) -> bool: ...

    def pairs(self, num_student: int, num_teacher: int) -> list[tuple[int, int]]: ...

    def __call__(self, student_ND: Float[Tensor, "N D"], teacher_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N"]: ...

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
    term: TokenTerm | HiddenTerm
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
    def token_terms(self) -> dict[str, WeightedTerm]:
        """The active terms that look at logits."""
        return {name: t for name, t in self.active.items() if not isinstance(t.term, HiddenTerm)}

    @property
    def hidden_terms(self) -> dict[str, WeightedTerm]:
        """The active terms that look at hidden states."""
        return {name: t for name, t in self.active.items() if isinstance(t.term, HiddenTerm)}

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with a teacher."""
        return any(t.term.needs_teacher for t in self.active.values())

    @property
    def counts_padding(self) -> bool:
        """Whether a term looks at padding: no sound one does (see ancestor.py)."""
        return any(getattr(t.term, "counts_padding", False) for t in self.active.values())

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
