"""Word-level knowledge distillation: forward KL from teacher to student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class WordKD:
    """KL divergence from teacher to student at every target position.

    Per position, logits z, temperature T:
        T**2 * sum_v p_v (log p_v - log q_v),   p = softmax(z_teacher / T), q = softmax(z_student / T)

    The factor T**2 keeps the gradient's size over temperatures (`t_squared=False` leaves it out).

    Shapes: both logits (N, V), one vocabulary in one order.
    Units:  nats per target token, times T**2. Zero exactly when the two agree.
    Source: Hinton et al. 2015; Kim & Rush 2016 (word-level KD).
    """

    temperature: float
    t_squared: bool = True
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self,
        student_logits_NV: Float[Tensor, "N V"],
        teacher_logits_NV: Float[Tensor, "N V"] | None,
        tgt_N: Int[Tensor, "N"],
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        if teacher_logits_NV is None:
            raise ValueError("word_kd needs the teacher's logits")
        log_q_NV = torch.log_softmax(student_logits_NV / self.temperature, dim=-1)
        log_p_NV = torch.log_softmax(teacher_logits_NV / self.temperature, dim=-1)
        kl_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
        return kl_N * self.temperature**2 if self.t_squared else kl_N

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self.temperature**2:g} * " if self.t_squared else ""
        return f"{factor}KL(teacher || student), both at temperature {self.temperature:g}"
