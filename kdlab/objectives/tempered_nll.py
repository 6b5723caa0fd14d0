"""Softmax tempering: NLL of softened predictions, without a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened, Teacher
from kdlab.types import TopK


@dataclass(frozen=True)
class TemperedNll:
    """Negative log-likelihood of the target token under the softened student: the control of KD's temperature.

    Per position, logits z, target y, temperature T:
        -T * log p_y,   p = softmax(z / T)
        gradient in z: p - onehot(y)

    The factor T keeps the size of the gradient over temperatures (`times_temperature=False` leaves it out). T = 1 is
    the NLL. At test time nothing is softened.

    Units:  nats per target token, times T.
    Source: Dabre & Fujita 2020 (softmax tempering).
    """

    temperature: float
    times_temperature: bool = True
    needs_teacher: ClassVar[bool] = False

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        log_probs_NV = torch.log_softmax(student_logits_NV / self.temperature, dim=-1)
        return -log_probs_NV.gather(1, tgt_N[:, None]).squeeze(1) * self._factor

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed form above."""
        probs_NV, log_total_N = student.at(self.temperature)
        size = scale * self._factor / self.temperature
        d_logits_NV.add_(probs_NV, alpha=size)
        d_logits_NV.scatter_add_(1, tgt_N[:, None], d_logits_NV.new_full((len(tgt_N), 1), -size))
        target_N = student.logits_NV.gather(1, tgt_N[:, None]).squeeze(1)
        return (log_total_N - target_N / self.temperature) * self._factor

    @property
    def _factor(self) -> float:
        return self.temperature if self.times_temperature else 1.0

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"{self.temperature:g} * " if self.times_temperature else ""
        return f"{factor}-log p(y) at temperature {self.temperature:g}"
