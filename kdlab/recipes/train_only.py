"""The student alone: no teacher, gold targets; also how a teacher is trained by itself."""

from __future__ import annotations

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step
from kdlab.recipes import steps
from kdlab.recipes.settings import resolve


def plan(cfg: DictConfig) -> list[Step]:
    """corpus, student, evaluate; no baseline, this is one."""
    settings = resolve(cfg)
    return [
        steps.corpus(settings),
        *steps.pretrain(settings),
        steps.student(settings),
        steps.evaluate(settings),
    ]
