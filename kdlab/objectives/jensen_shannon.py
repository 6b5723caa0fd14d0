"""Generalised Jensen-Shannon divergence: how far teacher and student are from their mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Teacher, log_probs


@dataclass(frozen=True)
class JensenShannon:
    """KL divergences of teacher and student from their mixture, weighed as the mixture is.

    Per position, temperature T, share b of the teacher in the mixture m = b p + (1 - b) q:
        T**2 * (b KL(p || m) + (1 - b) KL(q || m)),   p = softmax(z_teacher / T), q = softmax(z_student / T)

    Bounded by -b log b - (1 - b) log(1 - b) before the factor T**2. Its two ends, where it vanishes itself:
        divided by b, for b -> 0:      KL(p || q), teacher first, as in word_kd
        divided by 1 - b, for b -> 1:  KL(q || p), student first, as in reverse_kl

    Args:
        teacher_share: b, between 0 and 1; 0.5 is the symmetric divergence of Lin 1991.
        t_squared: whether the factor T**2 keeps the size of the gradient over temperatures.

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  nats per target token, times T**2; zero exactly when the two agree.
    Source: Agarwal et al. 2024 (generalised knowledge distillation), where b is beta.
    """

    temperature: float
    teacher_share: float = 0.5
    t_squared: bool = True
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        log_p_NO, log_q_NO = log_probs(student_logits_NV, teacher, self.temperature)
        share = self.teacher_share
        log_m_NO = torch.logaddexp(log_p_NO + math.log(share), log_q_NO + math.log1p(-share))
        of_teacher_N = (log_p_NO.exp() * (log_p_NO - log_m_NO)).sum(-1)
        of_student_N = (log_q_NO.exp() * (log_q_NO - log_m_NO)).sum(-1)
        factor = self.temperature**2 if self.t_squared else 1.0
        return factor * (share * of_teacher_N + (1.0 - share) * of_student_N)

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self.temperature**2:g} * " if self.t_squared else ""
        share = self.teacher_share
        sides = f"{share:g} KL(teacher || m) + {1 - share:g} KL(student || m)"
        mixture = f"m = {share:g} teacher + {1 - share:g} student"
        return f"{factor}({sides}), {mixture}, both at temperature {self.temperature:g}"
