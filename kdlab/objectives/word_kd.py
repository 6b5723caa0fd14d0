"""Word-level knowledge distillation: forward KL, or cross-entropy, from teacher to student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.errors import UserError
from kdlab.objectives.distributions import Softened, Teacher, log_probs
from kdlab.types import TopK


@dataclass(frozen=True)
class WordKD:
    """KL divergence from teacher to student at every target position.

    Per position, logits z, temperature T:
        T**2 * sum_v p_v (log p_v - log q_v),   p = softmax(z_teacher / T), q = softmax(z_student / T)
        gradient in z_student: T * (q - p)

    `form="cross_entropy"` leaves out the teacher's entropy, sum_v p_v log p_v: another value, the same gradient. The
    factor T**2 keeps the gradient's size over temperatures (`t_squared=False` leaves it out). With a top-k teacher the
    sum runs over its K tokens and "any other".

    Args:
        weight_at: pairs [temperature, factor] of which one factor multiplies the term; None multiplies nothing.

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  nats per target token, times T**2. The KL form is zero exactly when the two agree.
    Source: Hinton et al. 2015; Kim & Rush 2016 (word-level KD).
    """

    temperature: float
    t_squared: bool = True
    form: Literal["kl", "cross_entropy"] = "kl"
    weight_at: Any = None
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        log_p_NO, log_q_NO = log_probs(student_logits_NV, teacher, self.temperature)
        ratio_NO = log_p_NO - log_q_NO if self.form == "kl" else -log_q_NO
        return (log_p_NO.exp() * ratio_NO).sum(-1) * self._factor

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed form above."""
        if teacher is None:
            raise ValueError("word-level KD compares with a teacher, and got none")
        q_NV, log_total_q_N = student.at(self.temperature)
        size = scale * self._factor / self.temperature
        if isinstance(teacher, TopK):
            return self._add_top_k(q_NV, student.logits_NV, log_total_q_N, teacher, size, d_logits_NV)
        p_NV, log_total_p_N = teacher.at(self.temperature)
        d_logits_NV.add_(q_NV, alpha=size).sub_(p_NV, alpha=size)
        if self.form == "cross_entropy":
            nats_N = log_total_q_N - (p_NV * student.logits_NV).sum(-1) / self.temperature
        else:
            difference_NV = teacher.logits_NV - student.logits_NV
            mean_N = difference_NV.mul_(p_NV).sum(-1) / self.temperature
            nats_N = mean_N + (log_total_q_N - log_total_p_N)
        return nats_N * self._factor

    def _add_top_k(
        self, q_NV: Tensor, logits_NV: Tensor, log_total_q_N: Tensor, teacher: TopK, size: float, d_logits_NV: Tensor
    ) -> Tensor:
        """For the K tokens q - p; for the others, which share p_rest: q * (1 - p_rest / q_rest)."""
        log_p_NK, log_p_rest_N = teacher.at(self.temperature)
        p_NK, ids_NK = log_p_NK.exp(), teacher.ids_NK
        q_NK = q_NV.gather(1, ids_NK)
        log_q_NK = logits_NV.gather(1, ids_NK) / self.temperature - log_total_q_N[:, None]
        is_kl = self.form == "kl"
        nats_N = (p_NK * (log_p_NK - log_q_NK if is_kl else -log_q_NK)).sum(-1)
        if ids_NK.shape == q_NV.shape:
            d_logits_NV.add_(q_NV, alpha=size).scatter_add_(1, ids_NK, -size * p_NK)
            return nats_N * self._factor
        p_rest_N = log_p_rest_N.exp()
        # summed over the others themselves: one minus the rest would lose a small share's digits
        q_NV.scatter_(1, ids_NK, 0.0)
        q_rest_N = q_NV.sum(-1).clamp_(min=torch.finfo(q_NV.dtype).tiny)
        rest_N = size * (1.0 - p_rest_N / q_rest_N)
        d_logits_NV.addcmul_(q_NV, rest_N[:, None])
        d_logits_NV.scatter_add_(1, ids_NK, size * (q_NK - p_NK))
        q_NV.scatter_(1, ids_NK, q_NK)  # as it was: other terms share it
        log_q_rest_N = q_rest_N.log()
        nats_N += p_rest_N * (log_p_rest_N - log_q_rest_N if is_kl else -log_q_rest_N)
        return nats_N * self._factor

    @property
    def _factor(self) -> float:
        return self._weight * (self.temperature**2 if self.t_squared else 1.0)

    @property
    def _weight(self) -> float:
        if self.weight_at is None:
            return 1.0
        weights = {float(temperature): float(weight) for temperature, weight in self.weight_at}
        if self.temperature not in weights:
            raise UserError(
                f"temperature={self.temperature:g} has no weight in weight_at, so the term has no size; choose one of "
                f"{', '.join(f'{known:g}' for known in weights)}, or objective=word_kd, which needs no table"
            )
        return weights[self.temperature]

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self._weight:g} * " if self.weight_at is not None else ""
        factor += f"{self.temperature**2:g} * " if self.t_squared else ""
        name = "KL(teacher || student)" if self.form == "kl" else "cross-entropy(teacher, student)"
        return f"{factor}{name}, both at temperature {self.temperature:g}"
