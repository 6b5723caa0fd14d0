"""Mean squared distance of logits: what word-level KD becomes at a high temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from kdlab.errors import UserError
from kdlab.objectives.distributions import Softened, Teacher
from kdlab.types import TopK


@dataclass(frozen=True)
class LogitsMse:
    """Half the mean over the vocabulary of the squared difference of centred logits.

    Per position, logits z, difference d = z_student - z_teacher:
        1 / (2 V) * sum_v (d_v - mean(d))**2
        gradient in z_student: (d_v - mean(d)) / V

    Value and gradient are the limits of T**2 * KL(teacher || student) for T to infinity. Centred, because adding a
    number to all logits changes no probability; uncentred the limit does not hold. V are the real tokens.

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  squared logits; zero exactly when the two agree.
    Source: Hinton et al. 2015, section 2.1; Kim et al. 2021 (KL against MSE).
    """

    needs_teacher: ClassVar[bool] = True
    needs_all_logits: ClassVar[bool] = True  # no top-k teacher will do

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """The distance at every position. Raises: UserError for a top-k teacher."""
        difference_NV = student_logits_NV - self._all_logits(teacher)
        return 0.5 * (difference_NV - difference_NV.mean(-1, keepdim=True)).square().mean(-1)

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed form above."""
        guide = teacher.logits_NV if isinstance(teacher, Softened) else teacher
        centred_NV = student.logits_NV - self._all_logits(guide)
        centred_NV -= centred_NV.mean(-1, keepdim=True)
        d_logits_NV.add_(centred_NV, alpha=scale / centred_NV.shape[1])
        return 0.5 * centred_NV.square_().mean(-1)

    @staticmethod
    def _all_logits(teacher: Teacher) -> Tensor:
        if isinstance(teacher, TopK):
            raise UserError(
                f"logits_mse compares the logits of all tokens, but the teacher's top-k cache has "
                f"{teacher.ids_NK.shape[1]} of them, so there is no distance; use teacher_cache=hidden (all logits), "
                "or a divergence of distributions, e.g. objective=word_kd"
            )
        if teacher is None:
            raise ValueError("logits_mse compares with a teacher, and got none")
        return teacher

    def formula(self) -> str:
        """The term in words and numbers."""
        return "0.5 * mean square of (centred student logits - centred teacher logits)"
