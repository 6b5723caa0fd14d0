"""The configuration from the command line: composed by Hydra, with every problem found at once.

Choices of groups are separated from values; what can be composed is composed without types, each value is put into it,
and the result is held against the schema. Only a configuration without a problem is typed and resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from hydra import version as hydra_version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdlab import contradictions, points, schema, targets, validation
from kdlab.errors import ConfigError, did_you_mean

VERSION_BASE = "1.3"
NEEDS_PLUS = ("experiment", "debug")  # groups outside the primary defaults list


@final
@dataclass(frozen=True)
class Composed:
    """A valid configuration: typed, resolved, read-only; with what made it and the name of its point.

    `unresolved` still has its references; `values` are the keys that the user set, without the choices of groups;
    `unused` says of a point of a sweep which dials have no effect in it.
    """

    cfg: DictConfig
    unresolved: DictConfig
    values: list[str]
    overrides: list[str]
    choices: dict[str, str]
    point: str
    unused: tuple[str, ...] = ()


def compose(
    overrides: Sequence[str], *, config_dir: Path | None = None, config_name: str = "config", in_sweep: bool = False
) -> Composed:
    """Composes the configuration of one run.

    Args:
        overrides: as on the command line.
        config_dir: the user's own YAML, before ours.
        in_sweep: a dial that has no effect in this point may have one in another; it is no problem then.

    Raises: ConfigError with all problems.
    """
    return _Composition(overrides, config_dir, config_name).composed(in_sweep)


def expand(overrides: Sequence[str], *, config_dir: Path | None = None) -> list[list[str]]:
    """The points of a sweep, as Hydra's basic sweeper makes them. Raises: ConfigError."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = OverridesParser.create(config_loader=loader(config_dir)).parse_overrides(list(overrides))
        return BasicSweeper.split_arguments([o for o in parsed if not o.is_hydra_override()], None)[0]
    except HydraException as error:
        raise ConfigError([_one_line(error)]) from error


def loader(config_dir: Path | None) -> ConfigLoaderImpl:
    """Hydra's loader over the user's YAML and ours. Raises: ConfigError for a folder that does not exist."""
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError([f"--config-dir {config_dir} is no folder; name the one with your own YAML"])
    return _loader(config_dir.resolve() if config_dir else None)


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """What can be chosen for a group."""
    return sorted(loader(config_dir).get_group_options(group))


@lru_cache(maxsize=4)
def _loader(config_dir: Path | None) -> ConfigLoaderImpl:
    hydra_version.setbase(VERSION_BASE)
    setup_globals()
    schema.register()
    search_path = create_config_search_path(str(schema.config_dir()))
    if config_dir is not None:
        search_path.prepend("command-line", f"file://{config_dir}", SearchPathQuery(provider="main"))
    return ConfigLoaderImpl(search_path)


@lru_cache(maxsize=64)
def _load(loader: ConfigLoaderImpl, config_name: str, lines: tuple[str, ...], changed: int) -> DictConfig:
    """What Hydra composes of choices, which the points of a grid share: to be read alone; `changed`: when the user's
    YAML last was."""
    with schema.untyped():
        return loader.load_configuration(config_name, list(lines), run_mode=RunMode.RUN)


@lru_cache(maxsize=1024)
def _parsed(loader: ConfigLoaderImpl, text: str) -> Override:
    """One override; the points of a grid share most of theirs."""
    return OverridesParser.create(config_loader=loader).parse_overrides([text])[0]


@lru_cache(maxsize=1)
def _defaults() -> DictConfig:
    """The root dials as conf/config.yaml sets them."""
    loaded = OmegaConf.load(schema.config_dir() / "config.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


class _Composition:
    """The work of one `compose`: problems gather in `problems`."""

    def __init__(self, overrides: Sequence[str], config_dir: Path | None, config_name: str):
        self.overrides, self.config_name = list(overrides), config_name
        self.loader = loader(config_dir)
        self.changed = (
            max((path.stat().st_mtime_ns for path in config_dir.rglob("*.yaml")), default=0) if config_dir else 0
        )
        self.problems: list[str] = []
        self.failed: set[str] = set()  # groups whose choice is not in the composed configuration
        self.groups: list[Override] = []
        self.values: list[Override] = []
        self.settings: list[Override] = []  # Hydra's own
        for text in self.overrides:
            self._sort(text)
        self._check_order()

    def composed(self, in_sweep: bool) -> Composed:
        cfg, choices = self._compose_groups()
        before = cfg.copy()
        for override in self.values:
            self._apply(cfg, override, before)
        self.problems += validation.shape_problems(cfg)
        self.problems += targets.problems(cfg)
        contradicting, unused = self._contradictions(cfg, choices)
        self.problems += contradicting if in_sweep else contradicting + unused
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        try:
            typed = OmegaConf.merge(OmegaConf.structured(schema.Config), cfg)
            OmegaConf.resolve(typed)
        except OmegaConfBaseException as error:  # what no check foresaw, e.g. a reference to a value of another type
            raise ConfigError([_one_line(error)]) from error
        OmegaConf.set_readonly(typed, True)
        assert isinstance(typed, DictConfig)
        mine = {o.get_key_element().lstrip("+") for o in self.groups} - {"experiment"}
        usual = self._choices([o for o in self.groups if o.key_or_group == "experiment"]) if mine else {}
        chosen = {group: choice for group, choice in choices.items() if group in mine}
        keys = [o.key_or_group for o in self.values]
        point = points.name(typed, before, keys, chosen, usual, self._experiment(typed))
        return Composed(typed, cfg, keys, self.overrides, choices, point, tuple(unused))

    def _sort(self, text: str) -> None:
        """Puts one override where it belongs, or reports it."""
        try:
            override = _parsed(self.loader, text)
        except HydraException as error:
            self.problems.append(f"cannot read '{text}' ({_one_line(error)}); write key=value")
            return
        name = override.key_or_group
        if override.is_hydra_override():
            if not self._is_group(override) or self._is_choosable(override):
                self.settings.append(override)
        elif override.is_sweep_override():
            self.problems.append(
                f"'{text}' holds several values: to run each of them add -m; a list is written {name}=[...]"
            )
            self.failed.add(name)
        elif self._is_group(override):
            if self._is_choosable(override):
                self.groups.append(override)
            else:
                self.failed.add(override.get_key_element().lstrip("+~"))
        else:
            self.values.append(override)

    def _is_group(self, override: Override) -> bool:
        return not isinstance(override.value(), dict) and self.loader.repository.group_exists(override.key_or_group)

    def _is_choosable(self, override: Override) -> bool:
        group, value = override.key_or_group, override.value()
        plus = "+" if override.is_add() or override.is_force_add() else ""
        if override.is_delete():
            self.problems.append(
                f"'{override.input_line}' takes a group away that kdlab needs; choose another option of it"
            )
            return False
        known = self.loader.get_group_options(group)
        for choice in value if isinstance(value, list) else [value]:
            if not isinstance(choice, str) or choice not in known:
                nearest = did_you_mean(str(choice), known)
                there_are = f"{nearest} There are" if nearest else "; there are"
                self.problems.append(f"{plus}{group}={choice} does not exist{there_are}: {', '.join(known)}")
                return False
        if group in NEEDS_PLUS and not plus:
            self.problems.append(
                f"{group}={value} needs a plus, because no {group} is the default; write +{group}={value}"
            )
            return False
        return True

    def _check_order(self) -> None:
        chosen = [o.key_or_group for o in self.groups]
        if "debug" in chosen and "experiment" in chosen[chosen.index("debug") :]:
            debug, experiment = (next(o for o in self.groups if o.key_or_group == g) for g in ("debug", "experiment"))
            small = debug.input_line
            self.problems.append(f"{small} stands before {experiment.input_line}, which overrules it; put {small} last")

    def _compose_groups(self) -> tuple[DictConfig, dict[str, str]]:
        """The untyped configuration of the choices that can be composed; the others are reported one by one."""
        groups = list(self.groups)
        while True:
            try:
                cfg = self._load(groups)
                break
            except (HydraException, OmegaConfBaseException, YAMLError) as error:
                culprit = _culprit(error, groups)
                self.problems.append(_explain(error, culprit))
                if not groups:
                    raise ConfigError(list(dict.fromkeys(self.problems))) from error
                dropped = [culprit] if culprit is not None else groups
                self.failed |= {o.get_key_element().lstrip("+") for o in dropped}
                groups = [o for o in groups if o not in dropped]
        choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
        HydraConfig.instance().set_config(cfg)  # for `${hydra:...}` in somebody's YAML
        plain = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(plain, dict)
        return OmegaConf.create({k: v for k, v in plain.items() if k != "hydra"}), choices

    def _load(self, groups: Iterable[Override]) -> DictConfig:
        lines = [str(o.input_line) for o in [*groups, *self.settings]]
        return _load(self.loader, self.config_name, tuple(lines), self.changed)

    def _choices(self, groups: list[Override]) -> dict[str, str]:
        return {str(k): str(v) for k, v in self._load(groups).hydra.runtime.choices.items()}

    def _apply(self, cfg: DictConfig, override: Override, before: DictConfig) -> None:
        """Puts one value into the configuration; unknown keys are put in too and found with those of the files."""
        key, line = override.key_or_group, override.input_line
        if override.package is not None:
            self.problems.append(f"'{line}': there is no group '{key}'")
            return
        parent = key.rpartition(".")[0]
        try:
            if parent and _exists(cfg, parent) and not OmegaConf.is_config(OmegaConf.select(cfg, parent)):
                self.problems.append(f"'{line}': {parent} is a value, it has no keys below it")
            elif override.is_delete():
                _delete(cfg, key)
            elif override.is_add() and _exists(before, key) and not isinstance(override.value(), dict | list):
                self.problems.append(f"'{line}': {key} is there already; write it without the plus")
            else:
                OmegaConf.update(cfg, key, override.value(), merge=True, force_add=True)
                plus = override.is_add() or override.is_force_add()
                if not plus and not _exists(before, key) and self._may_grow(cfg, key):
                    self.problems.append(f"'{line}': {key} is not in the configuration yet; to add it write +{line}")
        except (OmegaConfBaseException, TypeError, ValueError, AttributeError, IndexError) as error:
            self.problems.append(f"'{line}' cannot be set: {_one_line(error)}")

    def _may_grow(self, cfg: DictConfig, key: str) -> bool:
        """Whether a new key is one that nothing else complains about."""
        found = validation.shape_problems(cfg) + targets.problems(cfg)
        return not any(f"'{key}'" in problem or f"'{key}." in problem for problem in found)

    def _contradictions(self, cfg: DictConfig, choices: dict[str, str]) -> tuple[list[str], list[str]]:
        """The contradictions, and dials without an effect where there are none."""
        chosen = {o.get_key_element().lstrip("+") for o in self.groups} - self.failed
        doubtful = set(self.failed)
        if self.failed & set(NEEDS_PLUS):  # an experiment chooses everything that the command line does not
            doubtful |= set(choices) - chosen
        found = contradictions.contradictions(cfg, choices=choices, doubtful=doubtful, tolerant=bool(self.problems))
        if self.failed or self.problems or found:
            return found, []
        turned = [o.key_or_group for o in self.values]
        turned = [dial for dial in turned if "." not in dial and cfg[dial] != _defaults().get(dial)]
        return [], contradictions.without_effect(cfg, turned, choices)

    def _experiment(self, cfg: DictConfig) -> str | None:
        """The experiment, where its own `name` does not say it already."""
        chosen = [str(o.value()) for o in self.groups if o.key_or_group == "experiment"]
        return chosen[-1] if chosen and cfg.name == _defaults().name else None


def _exists(cfg: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node: Any = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, DictConfig):
        return last in node or OmegaConf.is_missing(node, last)
    return node is not None and last.isdigit() and int(last) < len(node)


def _delete(cfg: DictConfig, key: str) -> None:
    parent, _, last = key.rpartition(".")
    node: Any = OmegaConf.select(cfg, parent) if parent else cfg
    if not _exists(cfg, key):
        raise ValueError("there is no such key to take away")
    del node[int(last) if last.isdigit() and not isinstance(node, DictConfig) else last]


def _culprit(error: Exception, groups: list[Override]) -> Override | None:
    """The choice that an error of Hydra's is about."""
    text = str(error)
    for override in groups:
        name = override.get_key_element().lstrip("+")
        value = override.value()
        values = value if isinstance(value, list) else [value]
        if re.search(rf"(Could not override|Multiple values for) '?{re.escape(name)}\b", text):
            return override
        if any(f"{override.key_or_group}/{value}" in text for value in values):
            return override
    return None


def _explain(error: Exception, culprit: Override | None) -> str:
    text = _one_line(error)
    if culprit is not None and text.startswith("Multiple values for"):
        line = str(culprit.input_line)
        return f"'{line}': {culprit.get_key_element().lstrip('+')} is there already; write {line.lstrip('+')}"
    return f"{culprit.input_line}: {text}" if culprit is not None else text


def _one_line(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's without its line breaks and type hints; the cause where it says more."""
    if error.__cause__ is not None and not str(error).strip():
        error = error.__cause__
    lines = [line.strip() for line in str(error).split(os.linesep) if line.strip()]
    kept = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))
    ]
    return re.sub(r"\s+", " ", " ".join(kept)) or type(error).__name__
