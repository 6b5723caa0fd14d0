"""Noisy student: the teacher labels, a student learns with noise, and labels in the next round as its teacher."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step
from kdlab.recipes import labelling, steps, teachers
from kdlab.recipes.settings import Settings, resolve


def plan(cfg: DictConfig) -> list[Step]:
    """corpus, teacher, then rounds of hypotheses, pseudo_label, student, evaluate; later ones end in _2, _3, ...

    The noise is the student's dropout and `source_noise`; whoever labels has neither.
    Source: Xie et al. 2020 (Self-training with Noisy Student), there with students that grow.
    """
    settings = resolve(cfg)
    found = [*teachers.corpus_and_teacher(settings), *steps.pretrain(settings), *_round(settings)]
    for number in range(2, settings["rounds"] + 1):
        found += _again(_round(settings), number)
    return [*found, *steps.baseline(settings)]


def _round(settings: Settings) -> list[Step]:
    """From a teacher's labels to an evaluated student."""
    return [
        *labelling.pseudo_labels(settings),
        *steps.teacher_cache(settings, labels=True),
        steps.student(settings, labels=True),
        steps.evaluate(settings),
    ]


def _again(first: list[Step], number: int) -> list[Step]:
    """The steps of a later round: the student of the round before is the teacher; what needs no teacher is there."""
    before = "student" if number == 2 else f"student_{number - 1}"
    renamed, again = {"teacher": before}, []
    for step in first:
        if renamed.keys() & step.inputs.values():
            renamed[step.name] = f"{step.name}_{number}"
            inputs = {role: renamed.get(name, name) for role, name in step.inputs.items()}
            local = {**step.local, **({"name": renamed[step.name]} if "name" in step.local else {})}
            again.append(replace(step, name=renamed[step.name], inputs=inputs, local=local))
    return again
