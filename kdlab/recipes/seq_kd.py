"""Sequence-level distillation: the student learns from the teacher's own translations of the training sources."""

from __future__ import annotations

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step
from kdlab.recipes import labelling, steps, teachers
from kdlab.recipes.settings import resolve


def plan(cfg: DictConfig) -> list[Step]:
    """corpus, teacher, hypotheses, pseudo_label, student, evaluate; the teacher is not needed while the student trains.

    Source: Kim & Rush 2016.
    """
    settings = resolve(cfg)
    return [
        *teachers.corpus_and_teacher(settings),
        *labelling.pseudo_labels(settings),
        *steps.teacher_cache(settings, labels=True),
        *steps.pretrain(settings),
        steps.student(settings, labels=True),
        steps.evaluate(settings),
        *steps.baseline(settings),
    ]
