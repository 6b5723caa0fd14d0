"""Logits as distributions: softened once for all terms of a chunk, and teacher and student over the same outcomes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdlab.types import TopK

# What a term gets of the teacher: logits of all tokens, the most likely ones with the mass of the rest, or nothing.
Teacher = Tensor | TopK | None


def log_probs(
    student_logits_NV: Float[Tensor, "N V"], teacher: Teacher, temperature: float
) -> tuple[Float[Tensor, "N O"], Float[Tensor, "N O"]]:
    """Log-probabilities of teacher and student at a temperature, over outcomes that both know.

    The outcomes are all tokens, or with a top-k teacher its K tokens and "any other": every divergence between the two
    is then at most that between the whole distributions (no more can be told apart), and equal to it for K = V.

    Returns: (log_p of the teacher, log_q of the student).
    """
    log_q_NV = torch.log_softmax(student_logits_NV / temperature, dim=-1)
    if teacher is None:
        raise ValueError("this term compares with a teacher, and got none")
    if isinstance(teacher, Tensor):
        return torch.log_softmax(teacher / temperature, dim=-1), log_q_NV
    log_p_NK, log_p_rest_N = teacher.at(temperature)
    log_q_NK = log_q_NV.gather(1, teacher.ids_NK)
    if log_q_NK.shape == log_q_NV.shape:  # no token is left for the rest
        return log_p_NK, log_q_NK
    log_q_rest_N = log_q_NV.scatter(1, teacher.ids_NK, float("-inf")).logsumexp(dim=-1)
    return (
        torch.cat([log_p_NK, log_p_rest_N[:, None]], dim=1),
        torch.cat([log_q_NK, log_q_rest_N[:, None]], dim=1),
    )


class Softened:
    """The distribution of a chunk's logits at any temperature, computed once however many terms ask for it."""

    def __init__(self, logits_NV: Float[Tensor, "N V"]):
        self.logits_NV = logits_NV
        self._known: dict[float, tuple[Tensor, Tensor]] = {}

    def at(self, temperature: float) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N"]]:
        """Probabilities, and log sum_v exp(z_v / T)."""
        if temperature not in self._known:
            scaled_NV = self.logits_NV if temperature == 1.0 else self.logits_NV / temperature
            probs_NV = torch.softmax(scaled_NV, dim=-1)
            # At the likeliest token log p = z / T - log sum holds without loss; log_softmax would be one pass more.
            self._known[temperature] = probs_NV, scaled_NV.amax(-1) - probs_NV.amax(-1).log_()
        return self._known[temperature]
