"""The name of a run among its experiment's: what differs from the defaults, as a folder name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What does not change a result: where, how fast, how far, how loud; and `data.root`, whose content is hashed.
SILENT = (
    "name", "until", "dry_run", "paths", "logger", "cluster", "strategy", "data.root",
    "trainer.device", "trainer.threads", "trainer.microbatch_tokens", "trainer.chunk_size",
    "trainer.checkpoint_every", "trainer.log_every",
)  # fmt: skip
GATHER = "strategy.gather"  # of a strategy the one thing that changes a result: the type in which layers compute
LONGEST = 120


def name(
    cfg: DictConfig,
    before: DictConfig,
    keys: Sequence[str],
    choices: Mapping[str, str],
    usual: Mapping[str, str],
    experiment: str | None,
) -> str:
    """The point's name, e.g. `seed=2,temperature=0.5`; `default` where nothing differs.

    Args:
        cfg: the resolved configuration.
        before: the configuration of the chosen groups, before single values were set.
        keys: the values that were set.
        choices: the option of every group; `usual` those without the user's choices.
        experiment: the experiment's name, where `cfg.name` does not say it.
    """
    parts = {} if experiment is None else {"experiment": experiment}
    for group, choice in choices.items():
        if group != "experiment" and usual.get(group) != choice and not is_silent(group):
            parts[group] = choice
    for key in keys:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if not is_silent(key) and value != _select(before, key):
            parts[key] = _text(value)
    return _folder_name(",".join(f"{key}={value}" for key, value in sorted(parts.items()))) or "default"


def _select(cfg: DictConfig, key: str) -> Any:
    return OmegaConf.select(cfg, key, throw_on_missing=False, throw_on_resolution_failure=False)


def is_silent(key: str) -> bool:
    """Whether a value changes no result."""
    return key != GATHER and any(key == silent or key.startswith(f"{silent}.") for silent in SILENT)


def _text(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _folder_name(text: str) -> str:
    """Safe on every file system; a hash keeps names apart that had to be changed."""
    safe = re.sub(r"[^A-Za-z0-9._=,+@-]+", "-", text)
    if safe == text and len(safe) <= LONGEST:
        return safe
    return f"{safe[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
