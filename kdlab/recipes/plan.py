"""The plan of a configuration: the steps that its recipe lists."""

from __future__ import annotations

from omegaconf import DictConfig

from kdlab.artifacts.stage import Step


def make_plan(cfg: DictConfig) -> list[Step]:
    """The steps of the configuration's recipe, upstream first."""
    from hydra.utils import get_method

    plan: list[Step] = get_method(cfg.recipe._target_)(cfg)
    return plan
