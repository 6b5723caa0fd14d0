"""The plan of a configuration: the steps that its recipe lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from kdlab import files, targets
from kdlab.artifacts.stage import Step


def make_plan(cfg: DictConfig) -> list[Step]:
    """The steps of the configuration's recipe, upstream first."""
    from hydra.utils import get_method

    plan: list[Step] = get_method(cfg.recipe._target_)(cfg)
    return [dataclasses.replace(step, code=own) if (own := _own_code(step.params)) else step for step in plan]


def _own_code(params: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the user's own files that a step's `_target_`s name: another formula under the same name is another
    result. What these files import is not looked at."""
    found = {target: targets.own_source(target) for target in _targets(params)}
    return {target: files.sha256_file(path) for target, path in found.items() if path is not None}


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _targets(entry)
