"""Settings that nothing reads: found by changing each one and making the plan again.

A value that the user wrote and that no step of the plan depends on is a misunderstanding, and worth an error before
hours of training: a temperature without a term that has one, the teacher's steps in a recipe without a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What the command itself reads, or what only names things.
READ_BY_THE_COMMAND = ("name", "until", "dry_run", "paths", "cluster", "hydra", "recipe", "data.name")

Plan = Callable[[DictConfig], Sequence[Any]]


def idle(cfg: DictConfig, keys: Sequence[str], plan: Plan) -> list[str]:
    """One problem for each of the keys whose value changes nothing in the plan.

    Args:
        cfg: the configuration with its references unresolved, so that a change of a dial reaches those who refer to it.
        keys: the values that the user set.
        plan: makes the steps of a configuration; each has params and local, what it reads.
    """
    chosen = [key for key in keys if not any(f"{key}.".startswith(f"{name}.") for name in READ_BY_THE_COMMAND)]
    if not chosen:
        return []
    usual = _read(cfg, plan)
    return [
        f"{key}={OmegaConf.select(cfg, key)} has no effect on this run: no step of its plan reads it; leave it out, or "
        "choose the group options that use it (dry_run=true shows the plan)"
        for key in chosen
        if all(_read(changed, plan) == usual for changed in _changed(cfg, key))
    ]


def _read(cfg: DictConfig, plan: Plan) -> Any:
    """All that the steps of a plan read."""
    try:
        return [(step.name, step.stage, step.params, step.inputs, step.local) for step in plan(cfg)]
    except Exception as error:  # a made-up value may fail anywhere, and what fails on it has read it
        return repr(error)


def _changed(cfg: DictConfig, key: str) -> Iterator[DictConfig]:
    """The configuration with another value at the key; below a mapping, with one value after the other changed."""
    value = OmegaConf.select(cfg, key)
    if isinstance(value, DictConfig) and value:
        for name in map(str, value):
            yield from _changed(cfg, f"{key}.{name}")
        return
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    copy = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(copy, DictConfig)
    OmegaConf.update(copy, key, _other(plain), merge=False, force_add=True)
    yield copy


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value + 1
    if isinstance(value, list):
        numbers = [entry for entry in value if isinstance(entry, int | float)]
        return [*value, _other(max(numbers, default="other"))]  # one that is not in the list: some are read as sets
    return f"{value}-other" if isinstance(value, str) else "other"
