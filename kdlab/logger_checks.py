"""Whether loggers can start, and that no secret stands in a configuration: run.json, logs and W&B all show it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kdlab import targets

SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)  # ends of names
ASSIGNED = re.compile(r"\w*(API_?KEY|TOKEN|SECRET|PASSWORD)=(?!\$)\S", re.IGNORECASE)  # in a line of shell
SHORTEST = 12  # a secret is no common word
TENSORBOARD = ("tensorboard", "tensorboardX")


def packages(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """TensorBoard's files are written by a package that kdlab itself does not need."""
    for path, node in targets.nodes(cfg.logger):
        target = str(node["_target_"]).lower()
        if target.endswith((".tensorboard", ".tensorboardlogger")) and not any(map(find_spec, TENSORBOARD)):
            yield (
                f"logger.{path} writes for TensorBoard, but neither of the packages {' and '.join(TENSORBOARD)} is "
                "installed, so it could not start; run pip install 'kdlab[tensorboard]', or choose logger=csv"
            )


def tags(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """W&B refuses them when the run starts, which is late."""
    for path, node in targets.nodes(cfg.logger):
        tags = node.get("tags") or ()
        if not isinstance(tags, ListConfig | tuple):
            yield f"logger.{path}.tags must be a list of words, got {tags!r}; write e.g. logger.{path}.tags=[{tags}]"
            continue
        for tag in tags:
            if not 1 <= len(str(tag)) <= 64:
                yield f"logger.{path}.tags has a tag of {len(str(tag))} characters, and W&B takes 1 to 64; shorten it"


def secrets(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Keys, tokens and passwords, by their names or because an environment variable of such a name has that value."""
    known = {
        name: value for name, value in os.environ.items() if SECRET.search(name) and len(value.strip()) >= SHORTEST
    }
    for path, value in _texts(OmegaConf.to_container(cfg, resolve=True)):
        variable = next((name for name, secret in known.items() if secret in value), None)
        named = path.startswith("logger.") and SECRET.search(path) is not None
        if variable is None and not named and not ASSIGNED.search(value):
            continue
        of = f"the value of the environment variable {variable}" if variable else "a secret"
        yield (
            f"{path} holds {of}, which would stand in run.json and wherever the configuration is shown; leave it out: "
            "programs read such a variable by themselves (W&B: WANDB_API_KEY, or `wandb login` once)"
        )


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain values, with its dotted path."""
    if isinstance(node, str):
        yield path, node
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, part in parts:
        yield from _texts(part, f"{path}.{name}".lstrip("."))
