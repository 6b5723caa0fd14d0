"""Symmetric KL divergence: the mean of both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened, Teacher
from kdlab.objectives.reverse_kl import ReverseKL
from kdlab.objectives.word_kd import WordKD
from kdlab.types import TopK


@dataclass(frozen=True)
class SymmetricKL:
    """Half of forward plus half of reverse KL.

    Per position, temperature T:
        T**2 / 2 * sum_v (p_v - q_v) (log p_v - log q_v),   p = softmax(z_teacher / T), q = softmax(z_student / T)

    A mean and not Jeffreys's sum, so that near agreement it equals either direction and keeps their weight.
    `t_squared=False` leaves the factor T**2 out.

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  nats per target token, times T**2; zero exactly when the two agree.
    Source: Jeffreys 1946; Kullback & Leibler 1951.
    """

    temperature: float
    t_squared: bool = True
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        forward, reverse = self._directions
        return 0.5 * (forward(student_logits_NV, teacher, tgt_N) + reverse(student_logits_NV, teacher, tgt_N))

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed forms of both directions."""
        forward, reverse = self._directions
        nats_N = forward.add_gradient(student, teacher, tgt_N, 0.5 * scale, d_logits_NV)
        return 0.5 * (nats_N + reverse.add_gradient(student, teacher, tgt_N, 0.5 * scale, d_logits_NV))

    @property
    def _directions(self) -> tuple[WordKD, ReverseKL]:
        return WordKD(self.temperature, self.t_squared), ReverseKL(self.temperature, self.t_squared)

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self.temperature**2 / 2:g}" if self.t_squared else "0.5"
        both = "KL(teacher || student) + KL(student || teacher)"
        return f"{factor} * ({both}), all at temperature {self.temperature:g}"
