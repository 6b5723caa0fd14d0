"""The deck's printed interpolation of NLL and KD, with its share applied twice: for the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened, Teacher
from kdlab.objectives.nll import Nll
from kdlab.objectives.tempered_nll import TemperedNll
from kdlab.objectives.word_kd import WordKD
from kdlab.types import TopK


@dataclass(frozen=True)
class HintonDoubleAlpha:
    """The interpolation as the deck prints it; a slip of the slide, not Hinton's loss, which is objective=word_kd.

    Per position, share a of the distillation, temperature T, p = softmax(z_teacher / T), q = softmax(z_student / T):
        (1 - a) * NLL + a * (a * (-sum_v p_v log q_v) + (1 - a) * (-log q_y))

    The share is in it twice: at a = 0.5 the soft target has 0.25, the tempered hard one 0.25, the NLL 0.5. Hinton's
    hard target is not tempered, and T**2 stands before the soft one.

    Args:
        kd_share: a, the deck's alpha; from 0 to 1.

    Units:  nats per target token.
    Source: the deck's slide on interpolation, after Hinton et al. 2015.
    """

    temperature: float
    kd_share: float = 0.5
    needs_teacher: ClassVar[bool] = True

    def __call__(
        self, student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, tgt_N: Int[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Nats at every position."""
        total_N = student_logits_NV.new_zeros(len(tgt_N))
        for share, term in self._parts:
            total_N = total_N + share * term(student_logits_NV, teacher, tgt_N)
        return total_N

    def add_gradient(
        self,
        student: Softened,
        teacher: Softened | TopK | None,
        tgt_N: Int[Tensor, "N"],
        scale: float,
        d_logits_NV: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N"]:
        """The closed forms of its three parts."""
        total_N = d_logits_NV.new_zeros(len(tgt_N))
        for share, term in self._parts:
            total_N += share * term.add_gradient(student, teacher, tgt_N, scale * share, d_logits_NV)
        return total_N

    @property
    def shares(self) -> tuple[float, float, float]:
        """Factors of soft target, tempered hard target and NLL."""
        return self.kd_share**2, self.kd_share * (1.0 - self.kd_share), 1.0 - self.kd_share

    @property
    def _parts(self) -> list[tuple[float, WordKD | TemperedNll | Nll]]:
        soft = WordKD(self.temperature, t_squared=False, form="cross_entropy")
        return list(
            zip(self.shares, (soft, TemperedNll(self.temperature, times_temperature=False), Nll()), strict=True)
        )

    def formula(self) -> str:
        """The term in words and numbers."""
        parts = " + ".join(f"{share:g} * ({term.formula()})" for share, term in self._parts)
        return f"the deck's printed double alpha: {parts}"
