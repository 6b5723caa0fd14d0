"""One optimizer step of the product, stopped before the optimizer: its loss, the mean of each term, every gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kdlab.checks.material import Material
from kdlab.checks.table import worst
from kdlab.models.transformer import Transformer
from kdlab.objectives.objective import Objective
from kdlab.objectives.reduce import Side, reduce
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.module import StudentModule
from kdlab.training.optim import Optim
from kdlab.types import Batch

OPTIM = Optim(1e-3, (0.9, 0.98), 1e-9, 0.0, None, "constant", 0)  # no clipping; it never steps


@dataclass(frozen=True)
class Subject:
    """Student, teacher and objective under test; all of one type, fp32 or fp64."""

    student: Transformer
    teacher: Transformer | None
    objective: Objective
    chunk_size: int

    @classmethod
    def of(cls, material: Material) -> Subject:
        """The configured ones, in fp32."""
        return cls(material.student, material.teacher, material.objective, material.chunk_size)

    def double(self) -> Subject:
        """Copies in fp64, for what rounding would hide."""
        teacher = None if self.teacher is None else copy.deepcopy(self.teacher).double()
        return replace(self, student=copy.deepcopy(self.student).double(), teacher=teacher)

    @property
    def dtype(self) -> torch.dtype:
        return self.student.src_embedding.weight.dtype


@dataclass(frozen=True)
class Measured:
    """What one step gave: loss, mean of each term, gradient by parameter."""

    loss: float
    means: dict[str, float]
    gradient: dict[str, Tensor]

    def norm(self) -> float:
        """Euclidean norm of the gradient."""
        return _norm(self.gradient)

    def distance(self, other: Measured) -> float:
        """Greatest difference of loss, means and gradient: relative, of numbers below 1 absolute."""
        names = self.means.keys() | other.means.keys()
        nan = float("nan")
        pairs = [(self.loss, other.loss), *((self.means.get(n, nan), other.means.get(n, nan)) for n in sorted(names))]
        found = [abs(a - b) / max(1.0, abs(b)) for a, b in pairs]
        apart = {name: value - other.gradient[name] for name, value in self.gradient.items()}
        found.append(_norm(apart) / max(other.norm(), 1e-12))
        return worst(*found)


class Probe(StudentModule):
    """A student in training outside Lightning, whose optimizer takes the gradient down instead of stepping."""

    gradient: dict[str, Tensor]

    @property  # type: ignore[misc]
    def trainer(self) -> Any:
        """As much of Lightning's as a step and a validation ask for."""
        return SimpleNamespace(global_step=0, precision_plugin=SimpleNamespace(forward_context=nullcontext))

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Plain autograd."""
        loss.backward()

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Takes gradients down."""
        return SimpleNamespace(step=self._take, zero_grad=lambda: self.zero_grad(set_to_none=True))

    def lr_schedulers(self) -> Any:
        """None that does anything."""
        return SimpleNamespace(step=lambda: None)

    def _take(self) -> None:
        self.gradient = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.named_parameters()
        }


def measure(
    subject: Subject, step: Sequence[Batch], *, objective: Objective | None = None, chunk_size: int | None = None
) -> Measured:
    """Runs `training_step` of the product, dropout off."""
    probe = _probe(subject, objective, chunk_size)
    with _default_dtype(subject.dtype):
        shown = {name: float(value) for name, value in probe.training_step((None, list(step)), 0).items()}
    loss = shown.pop("loss")
    shown.pop("grad_norm")
    return Measured(loss, shown, probe.gradient)


def plain(subject: Subject, step: Sequence[Batch]) -> Measured:
    """The same from ordinary autograd over all positions of a microbatch at once; token terms alone."""
    probe, objective = _probe(subject, None, None), subject.objective
    scales, student = objective.scales(objective.units(step)), subject.student
    sums, loss, ours = dict.fromkeys(objective.terms, 0.0), 0.0, dict(probe.named_parameters())
    for batch in step:
        targets, padded = batch.targets, objective.counts_padding
        mask_RT = None if padded else targets.mask_RT
        side, guide = _side(subject.student, batch, mask_RT), None
        if subject.teacher is not None and objective.needs_teacher:
            with torch.no_grad():
                guide = _side(subject.teacher, batch, mask_RT)
        settings: dict[str, Any] = {"chunk_size": 1, "plain": True, "padded": padded}
        reduced = reduce(objective.active, scales, targets, side, guide, **settings)
        reduced.loss.backward()
        loss += reduced.loss.item()
        sums |= {name: sums[name] + float(value) for name, value in reduced.sums.items()}
    units = {name: sum(b.num_units(term.on, term.per) for b in step) for name, term in objective.active.items()}
    gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in ours.items()}
    student.zero_grad(set_to_none=True)
    return Measured(loss, {name: sums[name] / num for name, num in units.items() if num}, gradient)


def validated(subject: Subject, batches: Sequence[Batch]) -> dict[str, float]:
    """What validation says of each term, on gold targets; not the gradients, which are of its first microbatch."""
    probe = _probe(subject, None, None)
    found = probe.validate(batches)
    subject.student.eval()
    return {name: value for name, value in found.items() if not name.startswith("grad_")}


def _probe(subject: Subject, objective: Objective | None, chunk_size: int | None) -> Probe:
    teacher = None if subject.teacher is None else FrozenTeacher(subject.teacher)
    torch.manual_seed(0)  # of learned projections
    subject.student.eval()
    return Probe(
        subject.student,
        objective or subject.objective,
        teacher,
        OPTIM,
        max_steps=1,
        chunk_size=chunk_size or subject.chunk_size,
    ).to(subject.dtype)


def _side(model: Transformer, batch: Batch, mask_RT: Tensor | None) -> Side:
    targets = batch.targets
    out = model(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, mask_RT)
    return Side(out.decoder_ND, model.head())


def _norm(tensors: dict[str, Tensor]) -> float:
    return sum(float(value.double().square().sum()) for value in tensors.values()) ** 0.5


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
