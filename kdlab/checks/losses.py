"""Checks of the loss as a whole: padding, cuts, equality of teacher and student, finite differences, chunks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdlab.checks import reference
from kdlab.checks.material import Material
from kdlab.checks.probe import Measured, Subject, measure, plain, validated
from kdlab.checks.table import Finding, does_not_apply, worst
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import HiddenTerm, Objective, WeightedTerm
from kdlab.types import Batch, Targets

FP32_LIMIT = 1e-4  # sums in another order differ by some 1e-6
FP64_LIMIT = 1e-4  # of finite differences
STEPS = (1e-6, 1e-7)  # their lengths: a kink (relu) within one of them is rarely within the other
EQUALITY_LIMIT = 1e-4  # of the NLL's gradient norm, or nats
NUM_PADDING = 3


def padding_proof(material: Material) -> Finding:
    """Columns of padding behind both sides change nothing."""
    subject, step = Subject.of(material), material.step(microbatch_tokens=_half(material))
    found = measure(subject, [_padded(batch, subject) for batch in step]).distance(measure(subject, step))
    gold = material.gold(microbatch_tokens=_half(material))
    longer = validated(subject, [_padded(batch, subject) for batch in gold])
    found = worst(found, _apart(longer, validated(subject, gold)))
    what = f"change of loss, gradient, terms, validation; {NUM_PADDING} columns on both sides; fp32, {material.where}"
    return Finding("padding-proof", found, FP32_LIMIT, what)


def cut_anywhere(material: Material) -> Finding:
    """One optimizer step gives one gradient, however it is cut into microbatches."""
    subject, whole = Subject.of(material), material.step()
    expected, cuts = measure(subject, whole), []
    shown, found = validated(subject, material.gold()), 0.0
    for tokens in (_half(material), 1):
        step = material.step(microbatch_tokens=tokens)
        cuts.append(len(step))
        parts = validated(subject, material.gold(microbatch_tokens=tokens))
        found = worst(found, measure(subject, step).distance(expected), _apart(parts, shown))
    cut = f"1, {cuts[0]} and {cuts[1]} microbatches"
    what = f"change of loss, gradient, terms, validation; {cut}; fp32, {material.where}"
    return Finding("cut-anywhere", found, FP32_LIMIT, what)


def zero_at_equality(material: Material) -> Finding:
    """A student that is its teacher has nothing to learn from it."""
    name, teacher = "zero at equality", material.teacher
    terms = {n: t for n, t in material.objective.active.items() if t.term.needs_teacher}
    if teacher is None or not terms:
        return does_not_apply(name, "no term compares with a teacher")
    twin = copy.deepcopy(teacher).requires_grad_(True)
    subject = replace(Subject.of(material), student=twin, teacher=teacher)
    step = material.step()
    nll = Objective({"nll": WeightedTerm(1.0, "all", "tgt_token", Nll())})
    size = measure(subject, step, objective=nll).norm()
    found, looked_at, left_out = 0.0, [], []
    for term_name, weighted in terms.items():
        alone = Objective({"term": replace(weighted, weight=1.0, mixed=False)})
        measured = measure(subject, step, objective=alone)
        others = measure(subject, [_other_targets(batch) for batch in step], objective=alone)
        projected = isinstance(weighted.term, HiddenTerm) and weighted.term.projection
        if projected or others.distance(measured) > EQUALITY_LIMIT:
            left_out.append(f"{term_name} ({'has a projection' if projected else 'looks at gold targets too'})")
            continue
        looked_at.append(term_name)
        value = measured.means.get("term", 0.0)
        if getattr(weighted.term, "form", "kl") == "cross_entropy":
            value -= reference.mean_entropy(teacher, step, weighted)
        found = worst(found, abs(value), measured.norm() / size)
    if not looked_at:
        return does_not_apply(name, ", ".join(left_out))
    rest = f"; left out: {', '.join(left_out)}" if left_out else ""
    what = f"value, or gradient over the NLL's, of {', '.join(looked_at)}{rest}; the teacher as student"
    return Finding(name, found, EQUALITY_LIMIT, f"{what}; fp32, {material.where}")


def finite_differences(material: Material) -> Finding:
    """The gradient is that of the loss which is reported."""
    subject, step = Subject.of(material).double(), material.step(microbatch_tokens=_half(material))
    gradient = measure(subject, step).gradient
    generator = torch.Generator().manual_seed(3)
    parameters = dict(subject.student.named_parameters())
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
    for name in ("src_embedding.weight", "tgt_embedding.weight"):
        if name in direction:
            direction[name][-1] = 0.0  # the row of the padding id is no parameter: it stays zero
    length = sum(float(d.square().sum()) for d in direction.values()) ** 0.5

    def moved(by: float) -> float:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(direction[name], alpha=by)
        loss = measure(subject, step).loss
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.sub_(direction[name], alpha=by)
        return loss

    slopes = [(moved(size / length) - moved(-size / length)) / (2 * size / length) for size in STEPS]
    expected = sum(float((gradient[f"student.{name}"] * direction[name]).sum()) for name in parameters)
    norm = sum(float(gradient[f"student.{name}"].square().sum()) for name in parameters) ** 0.5
    found = min(abs(slope - expected) for slope in slopes) / max(norm, 1e-12)
    what = f"slope of the loss less that of the gradient, over its norm; fp64, {material.where}"
    return Finding("gradient against finite differences", found, FP64_LIMIT, what)


def chunked_equals_plain(material: Material) -> Finding:
    """Chunks, whose gradient is made in the forward pass, give what plain autograd gives."""
    terms = material.objective.token_terms
    if not terms:
        return does_not_apply("chunked equals plain", "no term looks at logits")
    objective = replace(material.objective, terms=terms)
    subject, step = replace(Subject.of(material), objective=objective), material.step()
    expected = plain(subject, step)
    sizes = sorted({1, 7, material.chunk_size})
    found = worst(*(measure(subject, step, chunk_size=size).distance(expected) for size in sizes))
    what = f"change of loss, gradient, terms; {', '.join(map(str, sizes))} positions a chunk; fp32, {material.where}"
    return Finding("chunked equals plain", found, FP32_LIMIT, what)


def _apart(one: dict[str, float], other: dict[str, float]) -> float:
    """Greatest difference of what two validations say: relative, of numbers below 1 absolute."""
    return Measured(0.0, one, {}).distance(Measured(0.0, other, {}))


def _half(material: Material) -> int:
    """Padded tokens that cut the sentences into a few microbatches."""
    (batch,) = material.step()
    return max(1, (batch.src_BS.numel() + batch.targets.tgt_out_RT.numel()) // 3)


def _padded(batch: Batch, subject: Subject) -> Batch:
    """The batch with columns of padding behind both sides."""
    src_pad, tgt_pad = subject.student.config.src_vocab_size - 1, subject.student.config.tgt_vocab_size - 1

    def more(x: Tensor, value: Any) -> Tensor:
        return torch.cat([x, x.new_full((len(x), NUM_PADDING), value)], dim=1)

    targets = replace(
        batch.targets,
        tgt_in_RT=more(batch.targets.tgt_in_RT, tgt_pad),
        tgt_out_RT=more(batch.targets.tgt_out_RT, tgt_pad),
        mask_RT=more(batch.targets.mask_RT, False),
    )
    src, mask = more(batch.src_BS, src_pad), more(batch.src_mask_BS, False)
    return replace(batch, src_BS=src, src_mask_BS=mask, targets=targets)


def _other_targets(batch: Batch) -> Batch:
    """The batch with other tokens to predict after the same prefixes."""
    targets: Targets = batch.targets
    other = torch.where(targets.mask_RT, (targets.tgt_out_RT + 1) % 4, targets.tgt_out_RT)
    return replace(batch, targets=replace(targets, tgt_out_RT=other))
