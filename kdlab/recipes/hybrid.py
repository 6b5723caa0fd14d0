"""Hybrid distillation: gold NLL, NLL on the teacher's translations, and its distribution at every position."""

from __future__ import annotations

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step
from kdlab.recipes import labelling, steps, teachers
from kdlab.recipes.settings import resolve


def plan(cfg: DictConfig) -> list[Step]:
    """corpus, teacher, hypotheses, pseudo_label, student (with the teacher beside it), evaluate."""
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
