"""Reverse KL divergence: from student to teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened, Teacher, log_probs
from kdlab.types import TopK


@dataclass(frozen=True)
class ReverseKL:
    """KL divergence, student first: it punishes what the teacher finds unlikely, and may forget its minor modes.

    Per position, logits z, temperature T:
        T**2 * sum_v q_v (log q_v - log p_v),   p = softmax(z_teacher / T), q = softmax(z_student / T)
        gradient in z_student: T * q_v * (log q_v - log p_v - sum_u q_u (log q_u - log p_u))

    `t_squared=False` leaves the factor out. With a top-k teacher the sum runs over its K tokens and "any other".

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  nats per target token, times T**2; zero exactly when the two agree.
    Source: Gu et al. 2024 (MiniLLM); Wen et al. 2023 (f-divergences for sequences).
    """

    temperature: float
    t_squared: bool = True
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        log_p_NO, log_q_NO = log_probs(student_logits_NV, teacher, self.temperature)
        return (log_q_NO.exp() * (log_q_NO - log_p_NO)).sum(-1) * self._factor

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed form above; tokens of "any other" share its ratio."""
        if teacher is None:
            raise ValueError("reverse KL compares with a teacher, and got none")
        q_NV, log_total_q_N = student.at(self.temperature)
        if isinstance(teacher, TopK):
            log_p_NO, log_q_NO = log_probs(student.logits_NV, teacher, self.temperature)
            ratio_NO, num = log_q_NO - log_p_NO, teacher.ids_NK.shape[1]
            ratio_NV = ratio_NO[:, -1:].expand_as(q_NV).scatter(1, teacher.ids_NK, ratio_NO[:, :num])
        else:
            _, log_total_p_N = teacher.at(self.temperature)
            ratio_NV = (student.logits_NV - teacher.logits_NV) / self.temperature
            ratio_NV -= (log_total_q_N - log_total_p_N)[:, None]
        nats_N = torch.linalg.vecdot(q_NV, ratio_NV)
        size = scale * self._factor / self.temperature
        d_logits_NV.addcmul_(q_NV, ratio_NV - nats_N[:, None], value=size)
        return nats_N * self._factor

    @property
    def _factor(self) -> float:
        return self.temperature**2 if self.t_squared else 1.0

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self.temperature**2:g} * " if self.t_squared else ""
        return f"{factor}KL(student || teacher), both at temperature {self.temperature:g}"
