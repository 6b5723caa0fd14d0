"""Total variation distance: the probability mass that student and teacher place differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Teacher, log_probs


@dataclass(frozen=True)
class TotalVariation:
    """Half of the absolute differences of probabilities.

    Per position, temperature T:
        T / 2 * sum_v |p_v - q_v|,   p = softmax(z_teacher / T), q = softmax(z_student / T)
        gradient in z_student: q_v * (s_v - sum_u q_u s_u) / 2,   s = sign(q - p)

    The factor is T and not T**2: differences of probabilities shrink with 1 / T, their squares as in KL with 1 / T**2.
    `times_temperature=False` leaves it out. With a top-k teacher the sum runs over its K tokens and "any other".

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  probability, 0 (the two agree) to 1, times T.
    Source: Wen et al. 2023 (f-divergences for sequences).
    """

    temperature: float
    times_temperature: bool = True
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """The distance at every position."""
        log_p_NO, log_q_NO = log_probs(student_logits_NV, teacher, self.temperature)
        factor = self.temperature if self.times_temperature else 1.0
        return 0.5 * factor * (log_p_NO.exp() - log_q_NO.exp()).abs().sum(-1)

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self.temperature:g} * " if self.times_temperature else ""
        return f"{factor}total variation of teacher and student, both at temperature {self.temperature:g}"
