"""Negative log-likelihood of the target token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened, Teacher
from kdlab.types import TopK


@dataclass(frozen=True)
class Nll:
    """Negative log-likelihood, optionally with label smoothing.

    Per position, logits z, target y, smoothing e, over the V - 1 real tokens (the padding id is no token):
        (1 - e) * (-log p_y) + e * mean_v(-log p_v),   p = softmax(z)
        gradient in z: p - (1 - e) * onehot(y) - e / (V - 1)

    Units:  nats per target token.
    Source: Szegedy et al. 2016 for the smoothing.
    """

    label_smoothing: float = 0.0
    needs_teacher: ClassVar[bool] = False

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        return F.cross_entropy(student_logits_NV, tgt_N, reduction="none", label_smoothing=self.label_smoothing)

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed form above."""
        smoothing, logits_NV = self.label_smoothing, student.logits_NV
        probs_NV, log_total_N = student.at(1.0)
        d_logits_NV.add_(probs_NV, alpha=scale)
        onehot_N1 = d_logits_NV.new_full((len(tgt_N), 1), -scale * (1.0 - smoothing))
        d_logits_NV.scatter_add_(1, tgt_N[:, None], onehot_N1)
        target_N = logits_NV.gather(1, tgt_N[:, None]).squeeze(1)
        if smoothing:
            d_logits_NV.sub_(scale * smoothing / logits_NV.shape[1])
            target_N = (1.0 - smoothing) * target_N + smoothing * logits_NV.mean(-1)
        return log_total_N - target_N

    def formula(self) -> str:
        """The term in words and numbers."""
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        return f"-log p(y){smoothing}"
