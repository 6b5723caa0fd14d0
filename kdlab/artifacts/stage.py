"""A step of a plan and its key: what has to be done, told apart from where and how fast it is done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Run = Callable[[Path, dict[str, Path], dict[str, Any], dict[str, Any]], dict[str, Any]]
Assist = Callable[[Path, dict[str, Path], dict[str, Any], dict[str, Any]], None]


@dataclass(frozen=True)
class Step:
    """One named step of a plan.

    `params`, the keys of `inputs` and the user's own `code` (hashes of its source) are all that its result depends on:
    they are its key. `local` (device, threads, paths, ...) is recorded but not hashed. `inputs` maps the name under
    which the stage knows an artefact to the step that makes it. `assist` makes a step one that many processes share: it
    is called, with the `scratch` folder of the `run` under way in another process, in every process that wants the same
    step, and returns when nothing is left.
    """

    name: str
    stage: str
    version: int
    params: dict[str, Any]
    inputs: dict[str, str]
    run: Run = field(compare=False)
    local: dict[str, Any] = field(default_factory=dict, compare=False)
    assist: Assist | None = field(default=None, compare=False)
    code: dict[str, str] = field(default_factory=dict)


def round_of(evaluation: str) -> int | None:
    """The number of the round that a later evaluation ends: 2 for `evaluate_2`; None for all other steps."""
    found = re.fullmatch(r"evaluate_(\d+)", evaluation)
    return int(found[1]) if found else None


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, and 1.0 written as 1 (YAML does not tell them apart).

    Raises: TypeError for what is not plain JSON, ValueError for NaN and infinity.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key(step: Step, upstream_keys: Mapping[str, str]) -> str:
    """The key of a step: 12 hex of SHA-256 over its stage, version, params, the keys of its inputs by input name, and
    the user's own code where there is any."""
    described = {"stage": step.stage, "version": step.version, "params": step.params, "inputs": dict(upstream_keys)}
    described |= {"code": step.code} if step.code else {}
    return hashlib.sha256(canonical_json(described).encode("utf-8")).hexdigest()[:12]


def plan_keys(steps: Iterable[Step]) -> dict[str, str]:
    """The key of every step by its name; steps come upstream first. Raises: ValueError for a plan that does not hang
    together (a step named twice, or before the one that it needs)."""
    keys: dict[str, str] = {}
    for step in steps:
        missing = [name for name in step.inputs.values() if name not in keys]
        if missing or step.name in keys:
            raise ValueError(f"step {step.name!r} comes twice, or before its inputs {missing}")
        keys[step.name] = key(step, {name: keys[upstream] for name, upstream in step.inputs.items()})
    return keys


def needed(steps: Iterable[Step], until: str | None = None) -> list[Step]:
    """The steps that lead to `until` (it included), upstream first; None means all of them."""
    steps = list(steps)
    if until is None:
        return steps
    wanted = {until}
    for step in reversed(steps):
        if step.name in wanted:
            wanted.update(step.inputs.values())
    return [step for step in steps if step.name in wanted]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"keys of params must be text: {list(value)}")
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
