"""Negative log-likelihood of the target token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Nll:
    """Negative log-likelihood, optionally with label smoothing.

    Per position, logits z, target y, smoothing e, over the V - 1 real tokens (the padding id is no token):
        (1 - e) * (-log p_y) + e * mean_v(-log p_v),   p = softmax(z)

    Units:  nats per target token.
    Source: Szegedy et al. 2016 for the smoothing.
    """

    label_smoothing: float = 0.0
    needs_teacher: ClassVar[bool] = False

    def __call__(
        self,
        student_logits_NV: Float[Tensor, "N V"],
        teacher_logits_NV: Float[Tensor, "N V"] | None,
        tgt_N: Int[Tensor, "N"],
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        return F.cross_entropy(student_logits_NV, tgt_N, reduction="none", label_smoothing=self.label_smoothing)

    def formula(self) -> str:
        """The term in words and numbers."""
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        return f"-log p(y){smoothing}"
