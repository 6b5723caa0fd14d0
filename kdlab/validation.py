"""Problems of one composed configuration: unknown or missing keys, types, ranges, interpolations that lead nowhere."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from kdlab.errors import did_you_mean
from kdlab.schema import ARGUMENTS, Config

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def shape_problems(cfg: DictConfig) -> list[str]:
    """Keys, types and ranges held against the schema, in its order; the configuration may be unresolved."""
    return [*_section(cfg, Config, "", leaf_paths(cfg)), *_sources(cfg)]


def leaf_paths(cfg: Any, path: str = "") -> list[str]:
    """The dotted path of every value."""
    keys: Any = list(cfg) if isinstance(cfg, DictConfig) else range(len(cfg))
    found = []
    for key in keys:
        child: Any = cfg._get_node(key)
        where = f"{path}.{key}".lstrip(".")
        inner = isinstance(child, Container) and not (child._is_none() or child._is_interpolation())
        found += leaf_paths(child, where) if inner else [where]
    return found


def unknown_key(path: str, siblings: list[str], leaves: list[str]) -> str:
    """The sentence about a key that nobody knows: near its siblings, or the same word elsewhere."""
    nearest = did_you_mean(path, siblings)
    name = path.rpartition(".")[2]
    if not nearest or not did_you_mean(name, [s.rpartition(".")[2] for s in siblings]):
        elsewhere = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name and leaf != path]
        nearest = f"; did you mean '{min(elsewhere, key=len)}'?" if elsewhere else ""
    if not nearest and "." in path:
        nearest = f"; there are {', '.join(s.rpartition('.')[2] for s in siblings)}"
    return f"unknown key '{path}'{nearest or '; --help lists the keys'}"


def _section(node: DictConfig, kind: type, path: str, leaves: list[str]) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    prefix = f"{path}." if path else ""
    keys: list[Any] = list(node)
    for key in keys:
        if isinstance(key, bool):
            yield f'{prefix}{key}: YAML reads a bare on, off, yes or no so; write the key in quotes, e.g. "on":'
        elif str(key) not in known:
            yield unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in known], leaves)
    for name, field in known.items():
        if name in list(node):  # `in` itself does not see keys that are there without a value
            yield from _value(node, name, hints[name], f"{prefix}{name}", leaves, field)
        elif field.default == "???" and field.default_factory is NO_DEFAULT:
            yield f"{prefix}{name} is missing, and nothing stands in for it; write {prefix}{name}=..."


def _sources(cfg: DictConfig) -> Iterator[str]:
    """Sets of text that nothing can be built of; null does not take one away."""
    data: Any = cfg._get_node("data")
    for part in ("train", "valid", "tests") if isinstance(data, DictConfig) else ():
        node: Any = data._get_node(part)
        keys: Any = (
            list(node) if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ()
        )
        entries = {"valid": node} if part == "valid" else {f"{part}.{key}": node._get_node(key) for key in keys}
        for path, entry in entries.items():
            if entry is None or entry._is_interpolation() or entry._is_missing():
                continue  # told elsewhere
            if not (isinstance(entry, DictConfig) and not entry._is_none() and "_target_" in entry):
                plain = OmegaConf.to_container(entry) if isinstance(entry, Container) else entry._value()
                others = "; to leave a test set out write evaluate.tests=[<the others>]" if part == "tests" else ""
                yield f"data.{path} must be a source of text with a _target_, as in conf/data, got {plain!r}{others}"


def _value(
    parent: Any, key: Any, hint: Any, path: str, leaves: list[str], field: Field[Any] | None = None
) -> Iterator[str]:
    node = parent._get_node(key)
    if node._is_interpolation():
        yield from _interpolation(parent, key, path, leaves)
        return
    if node._is_missing():
        yield f"{path} has no value; write {path}=..."
        return
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if node._is_none():
        if type(None) not in options and hint is not Any:
            yield f"{path} must be {_describe(options[0])}, got null"
        return
    wanted = options[0]
    origin = typing.get_origin(wanted)
    if wanted is Any:
        yield from _anything(parent, key, path, leaves)
    elif is_dataclass(wanted) and isinstance(wanted, type):
        if isinstance(node, DictConfig):
            yield from _section(node, wanted, path, leaves)
        else:
            yield f"{path} must be a group of keys, got {parent[key]!r}"
    elif origin is dict or origin is list:
        if not isinstance(node, DictConfig if origin is dict else ListConfig):
            yield f"{path} must be {_describe(wanted)}, got {_shown(parent, key)}"
            return
        for inner in list(node) if origin is dict else range(len(node)):
            yield from _value(node, inner, typing.get_args(wanted)[-1], f"{path}.{inner}", leaves)
        if field is not None:
            yield from _range(OmegaConf.to_container(node), field, path)
    else:
        value = parent[key]
        allowed = (int, float) if wanted is float else (wanted,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            yield f"{path} must be {_describe(wanted)}, got {_shown(parent, key)}"
        elif field is not None:
            yield from _range(float(value) if wanted is float else value, field, path)


def _anything(parent: Any, key: Any, path: str, leaves: list[str]) -> Iterator[str]:
    """Inside a `_target_` node only ranges of well-known arguments and interpolations are looked at."""
    node = parent._get_node(key)
    if node._is_interpolation():
        yield from _interpolation(parent, key, path, leaves)
    elif node._is_missing():
        yield f"{path} has no value; write {path}=..."
    elif isinstance(node, DictConfig | ListConfig):
        if node._is_none():
            return
        for inner in list(node) if isinstance(node, DictConfig) else range(len(node)):
            yield from _anything(node, inner, f"{path}.{inner}", leaves)
    elif key in ARGUMENTS and str(parent.get("_target_")).startswith("kdlab."):
        value, in_words = parent[key], ARGUMENTS[key].metadata["want"].startswith("one of")
        if isinstance(value, str) if in_words else isinstance(value, int | float) and not isinstance(value, bool):
            yield from _range(value, ARGUMENTS[key], path)


def _range(value: Any, field: Field[Any], path: str) -> Iterator[str]:
    holds = field.metadata.get("holds")
    try:
        fits = holds is None or holds(value)
    except TypeError:  # a list of the wrong things
        fits = False
    if not fits:
        yield f"{path} must be {field.metadata['want']}, got {value if not isinstance(value, str) else repr(value)}"


def _interpolation(parent: Any, key: Any, path: str, leaves: list[str]) -> Iterator[str]:
    raw = str(parent._get_node(key)._value())
    try:
        parent[key]
    except GrammarParseError:
        yield f"{path} is {raw!r}, which cannot be read as a reference; write e.g. ${{temperature}}"
    except OmegaConfBaseException as error:
        inside = raw.partition("${")[2].partition("}")[0]
        reason = str(error).splitlines()[0]
        if ":" not in inside and "not found" in reason:
            near = did_you_mean(inside, leaves)
            if not near:  # perhaps the last part of a longer path
                last = {leaf.rpartition(".")[2]: leaf for leaf in leaves if leaf != path}
                word = did_you_mean(inside, last).rpartition("'")[0].rpartition("'")[2]
                near = f"; did you mean '{last[word]}'?" if word else ""
            reason = f"there is no key '{inside}'{near}"
        yield f"{path} refers to {raw}: {reason}"


def _describe(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is list:
        return "a list"
    if origin is dict:
        return "a mapping of names to values"
    return _WORDS.get(kind, "a group of keys")


def _shown(parent: Any, key: Any) -> str:
    node = parent._get_node(key)
    return repr(OmegaConf.to_container(node) if isinstance(node, Container) else node._value())
