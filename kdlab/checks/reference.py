"""Losses and their gradients in the logits, written anew from the formulas; nothing of objectives/ is called.

Masks are not believed either: a sentence ends with its first EOS. Slow and plain on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kdlab.models.transformer import Transformer
from kdlab.types import EOS_ID, Batch

KNOWN = ("Nll", "WordKD")  # classes of terms whose formulas are here


@dataclass(frozen=True)
class Expected:
    """Loss, mean of each term, gradient of the loss in the student's parameters."""

    loss: float
    means: dict[str, float]
    gradient: dict[str, Tensor]


def expected(student: Transformer, teacher: Transformer | None, step: Sequence[Batch], objective: Any) -> Expected:
    """What one optimizer step must give.

        loss = sum_t weight_t / units_t * sum over its positions of value_t

    `objective` is read and not asked: its terms' weights, rows, units and numbers.
    """
    totals, loss = dict.fromkeys(objective.terms, 0.0), 0.0
    student.zero_grad(set_to_none=True)
    for batch in step:
        z_NV = logits(student, batch)
        with torch.no_grad():
            t_NV = None if teacher is None else logits(teacher, batch)
            d_NV = torch.zeros_like(z_NV)
            for name, weighted in objective.terms.items():
                factor = _weight(objective, weighted) / max(1, _units(step, _divided_by(objective, weighted), weighted))
                for at, target in _positions(batch, weighted.on):
                    value, d_V = _term(weighted.term, z_NV[at], None if t_NV is None else t_NV[at], target)
                    totals[name] += value
                    loss += factor * value
                    d_NV[at] += factor * d_V
        z_NV.backward(d_NV)
    gradient = {f"student.{n}": _gradient(p) for n, p in student.named_parameters()}
    student.zero_grad(set_to_none=True)
    counts = {name: _units(step, weighted.on, weighted) for name, weighted in objective.terms.items()}
    return Expected(loss, {name: totals[name] / n for name, n in counts.items() if n}, gradient)


def limit_at_high_temperature(
    student: Transformer, teacher: Transformer, step: Sequence[Batch], weighted: Any
) -> dict[str, Tensor]:
    """The gradient of T**2 * KL(teacher || student) for T to infinity, divided by its units.

    in the logits: (z_student - z_teacher, both centred) / V
    """
    student.zero_grad(set_to_none=True)
    units = max(1, _units(step, weighted.on, weighted))
    for batch in step:
        z_NV = logits(student, batch)
        with torch.no_grad():
            t_NV, d_NV = logits(teacher, batch), torch.zeros_like(z_NV)
            for at, _ in _positions(batch, weighted.on):
                difference_V = (z_NV[at] - z_NV[at].mean()) - (t_NV[at] - t_NV[at].mean())
                d_NV[at] = difference_V / len(difference_V) / units
        z_NV.backward(d_NV)
    gradient = {f"student.{name}": _gradient(p) for name, p in student.named_parameters()}
    student.zero_grad(set_to_none=True)
    return gradient


@torch.no_grad()
def mean_entropy(teacher: Transformer, step: Sequence[Batch], weighted: Any) -> float:
    """Entropy of the teacher at a word_kd term's temperature, with the term's factor, over its units."""
    total = 0.0
    for batch in step:
        t_NV = logits(teacher, batch)
        for at, _ in _positions(batch, weighted.on):
            p_V = torch.softmax(t_NV[at] / weighted.term.temperature, dim=0)
            total -= float(torch.special.xlogy(p_V, p_V).sum())
    return total * factor_of(weighted.term) / max(1, _units(step, weighted.on, weighted))


def logits(model: Transformer, batch: Batch) -> Tensor:
    """Logits of the V - 1 real tokens at the real target positions, row by row."""
    targets = batch.targets
    out = model(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
    head = model.head()
    z_NV = out.decoder_ND @ head.weight_VD[:-1].t()
    return z_NV if head.bias_V is None else z_NV + head.bias_V[:-1]


def factor_of(term: Any) -> float:
    """What a word_kd term is multiplied by: T**2, or its factor for the temperature, or both."""
    by_temperature = {float(t): float(w) for t, w in getattr(term, "weight_at", None) or []}
    return (term.temperature**2 if term.t_squared else 1.0) * by_temperature.get(float(term.temperature), 1.0)


def _term(term: Any, z_V: Tensor, t_V: Tensor | None, target: int) -> tuple[float, Tensor]:
    """Value and gradient in the student's logits at one position."""
    if type(term).__name__ == "Nll":
        wanted_V = torch.full_like(z_V, term.label_smoothing / len(z_V))
        wanted_V[target] += 1.0 - term.label_smoothing
        log_q_V = z_V - z_V.logsumexp(0)
        return -float(wanted_V @ log_q_V), log_q_V.exp() - wanted_V
    assert type(term).__name__ == "WordKD" and t_V is not None
    temperature, factor = term.temperature, factor_of(term)
    log_q_V = z_V / temperature - (z_V / temperature).logsumexp(0)
    log_p_V = t_V / temperature - (t_V / temperature).logsumexp(0)
    p_V = log_p_V.exp()
    value = float(p_V @ -log_q_V) if term.form == "cross_entropy" else float(p_V @ (log_p_V - log_q_V))
    return factor * value, factor / temperature * (log_q_V.exp() - p_V)


def _weight(objective: Any, weighted: Any) -> float:
    share = 1.0
    if weighted.mixed and objective.mix_by == "weights":
        share = objective.mix if weighted.on == "gold" else 1.0 - objective.mix
    return float(weighted.weight * share)


def _divided_by(objective: Any, weighted: Any) -> str:
    return "all" if weighted.mixed and objective.mix_by == "sampling" else str(weighted.on)


def _units(step: Iterable[Batch], on: str, weighted: Any) -> int:
    return sum(
        {"tgt_token": tgt_len, "src_token": src_len, "sentence": 1}[weighted.per]
        for batch in step
        for is_pseudo, tgt_len, src_len in _rows(batch)
        if on == "all" or is_pseudo == (on == "pseudo")
    )


def _positions(batch: Batch, on: str) -> Iterator[tuple[int, int]]:
    """(index among the real positions, token to predict)."""
    start = 0
    for row, (is_pseudo, tgt_len, _) in enumerate(_rows(batch)):
        if on == "all" or is_pseudo == (on == "pseudo"):
            for t in range(tgt_len):
                yield start + t, int(batch.targets.tgt_out_RT[row, t])
        start += tgt_len


def _rows(batch: Batch) -> Iterator[tuple[bool, int, int]]:
    """(is pseudo, target tokens, source tokens), EOS counted."""
    for row, tgt in enumerate(batch.targets.tgt_out_RT.tolist()):
        src = batch.src_BS[batch.targets.source_R[row]].tolist()
        yield bool(batch.targets.is_pseudo_R[row]), tgt.index(EOS_ID) + 1, src.index(EOS_ID) + 1


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else cast(Tensor, parameter.grad).clone()
