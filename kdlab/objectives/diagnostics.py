"""What validation watches beside the loss: terms that are measured and never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Teacher, log_probs
from kdlab.objectives.objective import TokenTerm, WeightedTerm
from kdlab.objectives.word_kd import WordKD


@dataclass(frozen=True)
class TeacherEntropy:
    """Entropy of the teacher at temperature 1: -sum_v p_v log p_v. What a cross-entropy to it cannot fall below.

    Units: nats. With a top-k teacher that of its K tokens and "any other", which is less.
    """

    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """The entropy at every position."""
        log_p_NO, _ = log_probs(student_logits_NV, teacher, 1.0)
        return -(log_p_NO.exp() * log_p_NO).sum(-1)

    def formula(self) -> str:
        """The term in words."""
        return "H(teacher)"


@dataclass(frozen=True)
class Agreement:
    """One where student and teacher find the same token likeliest, else zero; its mean is the share of agreement."""

    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """The agreement at every position."""
        if teacher is None:
            raise ValueError("agreement is with a teacher, and there is none")
        theirs_N = teacher.argmax(-1) if isinstance(teacher, Tensor) else teacher.ids_NK[:, 0]
        return (student_logits_NV.argmax(-1) == theirs_N).to(student_logits_NV.dtype)

    def formula(self) -> str:
        """The term in words."""
        return "argmax student = argmax teacher"


def beside_a_teacher() -> dict[str, WeightedTerm]:
    """What is logged at every validation of a student with a teacher; on gold targets, per token."""
    watched: dict[str, TokenTerm] = {
        "teacher_entropy": TeacherEntropy(),
        "teacher_agreement": Agreement(),
        "teacher_kl": WordKD(1.0),
    }
    return {name: WeightedTerm(1.0, "gold", "tgt_token", term) for name, term in watched.items()}


def cosine(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Cosine of the angle between two gradients, each a list of tensors; 0 where one of them vanishes."""
    product = torch.stack([torch.sum(a * b) for a, b in zip(ours, theirs, strict=True)]).sum()
    return float(product) / max(norm(ours) * norm(theirs), 1e-30)


def norm(gradient: Sequence[Tensor]) -> float:
    """Euclidean norm of a gradient."""
    return float(torch.stack([part.square().sum() for part in gradient]).sum().sqrt())
