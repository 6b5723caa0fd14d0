"""The points of a grid: every combination of the overrides, each one a valid configuration; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdlab import compose, effects
from kdlab.errors import ConfigError

Plan = Callable[[DictConfig], Sequence[Any]]
NOTHING = " has no effect"  # behind the name and value of a dial that another point may use


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
    idle: dict[str, str] = {}  # what some point says is without effect there, e.g. mix=0.5, and its name
    works: set[str] = set()  # values with an effect in some point, by name (not looked at again), and groups by choice
    for overrides in lines:
        try:
            composed = compose.compose(overrides, config_dir=config_dir, config_name=config_name, in_sweep=True)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        asked = [key for key in composed.values if key not in works]
        told = [*composed.unused, *effects.idle(composed.unresolved, asked, plan)]
        here = {one.partition(NOTHING)[0]: one.partition("=")[0] for one in told}
        chosen = {f"{group}={choice}" for group, choice in composed.choices.items()}
        works |= (set(asked) - set(here.values())) | (chosen - set(here))
        idle |= here
        found.append(composed)
    nowhere = dict.fromkeys(name for told, name in idle.items() if not {told, name} & works)
    problems |= dict.fromkeys(f"{name}{NOTHING} in any point of the sweep; leave it out" for name in sorted(nowhere))
    problems |= dict.fromkeys(_same_name(found, plan))
    if problems:
        raise ConfigError(list(problems))
    return found


def _same_name(found: Sequence[compose.Composed], plan: Plan) -> Iterator[str]:
    """Points that are other runs under one name: one would stand in the place of the other."""
    named: dict[tuple[str, str], list[compose.Composed]] = {}
    for composed in found:
        named.setdefault((composed.cfg.name, composed.point), []).append(composed)
    for (name, point), some in named.items():
        if len(some) == 1:
            continue
        runs = [(one.cfg.until, _asks(plan(one.cfg))) for one in some]
        other = next((one for one, run in zip(some, runs, strict=True) if run != runs[0]), None)
        if other is not None:
            mine, its = (
                " ".join(o for o in a.overrides if o not in b.overrides)
                for a, b in ((some[0], other), (other, some[0]))
            )
            yield (
                f"two points are other runs ({mine or 'without it'}; {its or 'without it'}) but both have the name "
                f"{name}/{point}, so one would overwrite the other; run them one after the other, each with a name=... "
                "of its own"
            )


def _asks(steps: Sequence[Any]) -> list[Any]:
    """What the keys of a plan's steps are made of."""
    return [(step.name, step.stage, step.params, step.inputs, step.code) for step in steps]
