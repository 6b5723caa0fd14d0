"""Word-level distillation: the student also matches the teacher's distribution at every gold position."""

from __future__ import annotations

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step
from kdlab.recipes import steps, teachers
from kdlab.recipes.settings import resolve


def plan(cfg: DictConfig) -> list[Step]:
    """corpus, teacher, student, evaluate; no pseudo-labels, so `on: all` means gold rows."""
    settings = resolve(cfg)
    return [
        *teachers.corpus_and_teacher(settings),
        *steps.teacher_cache(settings),
        *steps.pretrain(settings),
        steps.student(settings),
        steps.evaluate(settings),
        *steps.baseline(settings),
    ]
