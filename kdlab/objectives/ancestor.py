"""Word-level KD with the defects of the deck's own code: for comparison only, never for results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.errors import UserError
from kdlab.objectives.distributions import Teacher
from kdlab.types import TopK


@dataclass(frozen=True)
class Ancestor:
    """KL divergence as the deck's code takes it: three defects kept on purpose; the sound term is `WordKD`.

    Per position, logits z, the head's bias b, temperature T, weight w:
        (T**2 + w) * sum_v p_v (log p_v - log q_v),   p, q = softmax((z - b) / T + b) of teacher and student

    1. Hidden states and not logits are divided by T, so that a bias stays at full size. Without biases no difference.
    2. The mean runs over all positions, padding too: `per: position`, the only term that may say so.
    3. Scaling gradients by T**2, the code back-propagates twice, once with the weight squared: with the weight w of the
       objective the gradient is w T**2 + w**2 times that of the KL.

    The value is the one whose gradient is taken; the ancestor's own log said w**2 * KL. Its cosine over one flattened
    tensor is not here.

    Args:
        weight: w, the same as the weight of the term in the objective.

    Units:  nats per position, times T**2 + w.
    Source: the code behind the deck (the distillation branch of NVIDIA's NeMo, 2021).
    """

    temperature: float
    weight: float
    needs_teacher: ClassVar[bool] = True
    counts_padding: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position, of heads without biases."""
        return self.biased(student_logits_NV, teacher, None, None)

    def biased(
        self,
        student_logits_NV: Float[Tensor, "N V"],
        teacher: Teacher,
        student_bias_V: Float[Tensor, "V"] | None,
        teacher_bias_V: Float[Tensor, "V"] | None,
    ) -> Float[Tensor, "N"]:
        """Nats at every position; the biases of both heads are in the logits."""
        if isinstance(teacher, TopK):
            raise UserError(
                "objective=ancestor divides hidden states by the temperature, which a top-k cache does not have; "
                "use teacher_cache=none"
            )
        if teacher is None:
            raise ValueError("the ancestor's term compares with a teacher, and got none")
        log_p_NV = self._log_probs(teacher, teacher_bias_V)
        log_q_NV = self._log_probs(student_logits_NV, student_bias_V)
        return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1) * (self.temperature**2 + self.weight)

    def _log_probs(self, logits_NV: Tensor, bias_V: Tensor | None) -> Tensor:
        if bias_V is None:
            return torch.log_softmax(logits_NV / self.temperature, dim=-1)
        return torch.log_softmax((logits_NV - bias_V) / self.temperature + bias_V, dim=-1)

    def formula(self) -> str:
        """The term in words and numbers."""
        factor = f"({self.temperature**2:g} + {self.weight:g})"
        return (
            f"ANCESTOR, defects for comparison: {factor} * KL(teacher || student), hidden states divided by "
            f"{self.temperature:g}, padding counted"
        )
