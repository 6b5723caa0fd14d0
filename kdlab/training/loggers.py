"""Loggers beside metrics.csv: what they are told of the training that they log, and building them from YAML."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from kdlab import files

TAGGED = ("experiment", "recipe", "objective", "student", "strategy")  # groups whose option is worth a tag


@dataclass(frozen=True)
class Training:
    """A training as loggers show it; nothing of it changes a result.

    Args:
        step: its name in the plan: teacher, student or baseline.
        folder: of the run that it belongs to, runs/<name>/<point>.
        scratch: where the training keeps what it needs to be resumed.
        config: the run's whole configuration, resolved.
        tags: what was chosen for the groups that matter most.
    """

    step: str
    folder: Path
    scratch: Path
    config: dict[str, Any]
    tags: list[str]

    @classmethod
    def of_run(cls, folder: Path, *, step: str, scratch: Path) -> Training:
        """What run.json says."""
        run = files.read_json(folder / "run.json")
        tags = [run["choices"][group] for group in TAGGED if group in run["choices"]]
        return cls(step, folder, scratch, run["config"], tags)


def build(node: dict[str, Any], training: Training) -> Logger:
    """The logger that a node of conf/logger describes; one that takes `training` is told of it."""
    make = instantiate(node, _partial_=True, _convert_="all")
    given = {"training": training} if "training" in inspect.signature(make).parameters else {}
    logger: Logger = make(**given)
    return logger


def tensorboard(training: Training) -> TensorBoardLogger:
    """Lightning's logger for TensorBoard; a resumed training goes on in its folder."""
    return TensorBoardLogger(training.folder / "tensorboard", name=training.step, version="")
