"""Mean squared distance between hidden states of student and teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from kdlab.objectives.layer_pairs import layer_pairs


@dataclass(frozen=True)
class HiddenMse:
    """Mean squared difference of student and teacher states, at every real position of every pair of layers.

        1 / D * sum_d (h_s,d - h_t,d)**2,   D the width of the teacher

    Args:
        stack: encoder (real source positions) or decoder (real target positions).
        layers: "last", "spread" or pairs [[student, teacher], ...], see `layer_pairs`.
        projection: a learned matrix brings the student to the teacher's width first.

    Units:  squared activations, a mean over the width.
    Source: Jiao et al. 2020 (TinyBERT).
    """

    stack: Literal["encoder", "decoder"] = "decoder"
    layers: Any = "last"
    projection: bool = False
    needs_teacher: ClassVar[bool] = True

    def pairs(self, num_student: int, num_teacher: int) -> list[tuple[int, int]]:
        """Pairs of layers (student, teacher)."""
        return layer_pairs(self.layers, num_student, num_teacher)

    def __call__(self, student_ND: Float[Tensor, "N D"], teacher_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        """The distance at every position."""
        return (student_ND - teacher_ND).square().mean(-1)

    def formula(self) -> str:
        """The term in words and numbers."""
        mapped = "projected h_student" if self.projection else "h_student"
        return f"mean square of ({mapped} - h_teacher), {self.stack} layers {self.layers}"
