"""The points of a grid: every combination of the overrides, each one a valid configuration; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdlab import compose, effects
from kdlab.errors import ConfigError

Plan = Callable[[DictConfig], Sequence[Any]]
NO_TERM = " has no effect: no term"  # in a problem of a dial that another point may use


def points(
    lines: Sequence[Sequence[str]], plan: Plan, *, config_dir: Path | None = None, config_name: str = "config"
) -> list[compose.Composed]:
    """The configurations of a grid's points.

    Args:
        lines: the overrides of each point, as `compose.expand` gives them.
        plan: makes the steps of a configuration, to find values that nothing reads.

    Raises: one ConfigError for all points; a dial that is idle in some points may work in another.
    """
    found: list[compose.Composed] = []
    problems: dict[str, None] = {}
    works: set[str] = set()  # dials with an effect in some point: not looked at again
    idle: set[str] = set()
    for overrides in lines:
        unused: list[str] = []
        try:
            composed = compose.compose(overrides, config_dir=config_dir, config_name=config_name)
        except ConfigError as error:
            unused = [problem for problem in error.problems if NO_TERM in problem]
            problems |= dict.fromkeys(problem for problem in error.problems if problem not in unused)
            if len(unused) < len(error.problems):
                continue
            composed = compose.compose(overrides, config_dir=config_dir, config_name=config_name, in_sweep=True)
        asked = [key for key in composed.values if key not in works]
        unused += effects.idle(composed.unresolved, asked, plan)
        names = {problem.partition("=")[0] for problem in unused}
        works |= set(asked) - names
        idle |= names
        found.append(composed)
    nowhere = "has no effect in any point of the sweep; leave it out"
    problems |= dict.fromkeys(f"{dial} {nowhere}" for dial in sorted(idle - works))
    if problems:
        raise ConfigError(list(problems))
    return found
