"""Sequence-level distillation: the student learns from the teacher's own translations of the training sources."""

from __future__ import annotations

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step
from kdlab.recipes import steps


def plan(cfg: DictConfig) -> list[Step]:
    """corpus, teacher, pseudo_label, student, evaluate; the teacher is not needed while the student trains.

    Source: Kim & Rush 2016.
    """
    settings = steps.resolve(cfg)
    return [
        *steps.corpus_and_teacher(settings),
        *steps.pseudo_labels(settings),
        *steps.teacher_cache(settings, labels=True),
        steps.student(settings, labels=True),
        steps.evaluate(settings),
        *steps.baseline(settings),
    ]
