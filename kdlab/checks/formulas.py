"""Checks against formulas: the closed form of single terms, and what word-level KD becomes at a high temperature.

Both run on copies in fp64 whose head is untied and has a bias: without a bias, dividing hidden states by the
temperature instead of logits would make no difference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kdlab.checks import reference
from kdlab.checks.material import Material
from kdlab.checks.probe import Measured, Subject, measure
from kdlab.checks.table import Finding, does_not_apply, worst
from kdlab.models.transformer import Transformer
from kdlab.objectives.objective import Objective

FP64_LIMIT = 1e-8  # two ways to the same number
HIGH_TEMPERATURE = 1000.0
HIGH_TEMPERATURE_LIMIT = 0.05  # of the limit's norm: logits over the temperature are left
BIAS = 0.5  # standard deviation


def closed_form(material: Material) -> Finding:
    """Loss and gradient are what the formulas say."""
    name, active = "gradient against the closed form", material.objective.active
    known = {n: term for n, term in active.items() if type(term.term).__name__ in reference.KNOWN}
    others = [n for n in active if n not in known]
    if not known:
        return does_not_apply(name, f"finite differences only: {', '.join(others)}")
    objective = replace(material.objective, terms=known)
    subject, step = replace(biased(material), objective=objective), material.step()
    expected = reference.expected(subject.student, subject.teacher, step, objective)
    found = 0.0
    for one in (objective, *(replace(objective, terms={n: term}) for n, term in known.items() if len(known) > 1)):
        if one is not objective:
            expected = reference.expected(subject.student, subject.teacher, step, one)
        measured = measure(subject, step, objective=one)
        found = worst(found, measured.distance(Measured(expected.loss, expected.means, expected.gradient)))
    rest = f"; finite differences only: {', '.join(others)}" if others else ""
    what = f"difference of loss, gradient, terms, together and one by one: {', '.join(known)}{rest}"
    return Finding(name, found, FP64_LIMIT, f"{what}; heads with biases, fp64, {material.where}")


def high_temperature(material: Material) -> Finding:
    """The gradient of T**2 KL becomes the difference of centred logits over V."""
    name, teacher = "high-temperature limit", material.teacher
    terms = {n: t for n, t in material.objective.active.items() if type(t.term).__name__ == "WordKD"}
    if teacher is None or not terms:
        return does_not_apply(name, "no term is word-level KD")
    subject, step, found = biased(material), material.step(), 0.0
    assert subject.teacher is not None
    for weighted in terms.values():
        term: Any = weighted.term
        hot = replace(term, temperature=HIGH_TEMPERATURE, **({"weight_at": None} if hasattr(term, "weight_at") else {}))
        alone = Objective({"kd": replace(weighted, term=hot, weight=1.0, mixed=False)})
        size = 1.0 if term.t_squared else HIGH_TEMPERATURE**-2
        limit = reference.limit_at_high_temperature(subject.student, subject.teacher, step, weighted)
        gradient = measure(subject, step, objective=alone).gradient
        apart = sum(float((gradient[n] / size - value).square().sum()) for n, value in limit.items())
        found = worst(found, (apart / sum(float(value.square().sum()) for value in limit.values())) ** 0.5)
    what = f"distance of the gradient of {', '.join(terms)} at T = {HIGH_TEMPERATURE:g} from its limit, over the limit"
    return Finding(name, found, HIGH_TEMPERATURE_LIMIT, f"{what}; heads with biases, fp64, {material.where}")


def biased(material: Material) -> Subject:
    """Both models in fp64 with an untied head that has a bias."""
    subject = Subject.of(material).double()
    teacher = None if subject.teacher is None else _with_bias(subject.teacher, 11)
    return replace(subject, student=_with_bias(subject.student, 12), teacher=teacher)


@torch.no_grad()
def _with_bias(model: Transformer, seed: int) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    head, config = model.head(), model.config
    free = Transformer(replace(config, tie="none", softmax_bias=True)).to(head.weight_VD.dtype)
    state = dict(model.state_dict())
    state.setdefault("tgt_embedding.weight", model.src_embedding.weight)
    state["softmax_weight"] = head.weight_VD
    noise = BIAS * torch.randn(config.tgt_vocab_size, generator=generator, dtype=head.weight_VD.dtype)
    state["softmax_bias"] = noise if head.bias_V is None else head.bias_V + noise
    free.load_state_dict(state)
    return free.eval()
