"""Cosine distance between hidden states of student and teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdlab.objectives.layer_pairs import layer_pairs


@dataclass(frozen=True)
class HiddenCosine:
    """One minus the cosine of student and teacher states, at every real position of every pair of layers.

        1 - h_s . h_t / (|h_s| |h_t|)

    Args:
        stack: encoder (real source positions) or decoder (real target positions).
        layers: "last", "spread" or pairs [[student, teacher], ...], see `layer_pairs`.
        projection: a learned matrix brings the student to the teacher's width first.

    Units:  none; 0 for the same direction, 2 for the opposite one. The length of a state does not matter.
    Source: Sanh et al. 2019 (DistilBERT), there of the last layer.
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
        return 1.0 - F.cosine_similarity(student_ND, teacher_ND, dim=-1)

    def formula(self) -> str:
        """The term in words and numbers."""
        mapped = "projected h_student" if self.projection else "h_student"
        return f"1 - cos({mapped}, h_teacher), {self.stack} layers {self.layers}"
