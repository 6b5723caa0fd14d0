"""`_target_` nodes: what they may be given, and building them.

Signatures are read from the source with `ast`, so that a wrong argument is found without importing torch. Only what
is not there as Python source, or is made at import time, is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdlab.errors import UserError, did_you_mean

# Given by the code that builds a node, not by its YAML: path of the node -> argument names.
GIVEN: dict[str, frozenset[str]] = {
    "recipe": frozenset({"cfg"}),
    "init": frozenset({"model", "seed", "teacher"}),
    "strategy": frozenset({"device"}),
    **dict.fromkeys(("logger.wandb", "logger.tensorboard"), frozenset({"training"})),
}
# Keys of a node that describe it and are not handed on.
DESCRIPTIONS: dict[str, frozenset[str]] = {"recipe": frozenset({"steps"})}

_PYTHON_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a target; `annotation` is its source text where there is one."""

    name: str
    required: bool
    annotation: ast.expr | None = None


@dataclass(frozen=True)
class Signature:
    """The arguments of a target. `choices` are the module's own Literal aliases; `flags` plain class attributes."""

    name: str
    parameters: tuple[Parameter, ...]
    open_ended: bool
    aliases: Mapping[str, ast.expr]
    flags: Mapping[str, Any]

    def takes(self, name: str) -> bool:
        """Whether it has a parameter of that name."""
        return any(parameter.name == name for parameter in self.parameters)

    def misfit(self, name: str, value: Any) -> str | None:
        """What a value would have to be, when its simple annotation excludes it; None when it fits or is unknown."""
        annotation = next((p.annotation for p in self.parameters if p.name == name), None)
        if annotation is None:
            return None
        if isinstance(annotation, ast.Name) and annotation.id in self.aliases:
            annotation = self.aliases[annotation.id]
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
            choices = ast.literal_eval(annotation.slice)
            choices = choices if isinstance(choices, tuple) else (choices,)
            return None if value in choices else f"one of {', '.join(map(str, choices))}"
        wanted = _PYTHON_TYPES.get(ast.unparse(annotation))
        if wanted is None:
            return None
        fits = isinstance(value, wanted[0]) and (wanted[0] == (bool,) or not isinstance(value, bool))
        return None if fits else wanted[1]


def problems(cfg: DictConfig) -> list[str]:
    """What is wrong with the `_target_` nodes of a configuration, resolved or not: each one a full sentence."""
    return [problem for path, node in nodes(cfg) for problem in node_problems(path, node)]


def nodes(cfg: DictConfig | ListConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_`, with its dotted path."""
    if isinstance(cfg, DictConfig):
        if "_target_" in cfg:
            yield path, cfg
        keys: Collection[Any] = [str(key) for key in cfg]
    else:
        keys = range(len(cfg))
    for key in keys:
        child = cfg._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_interpolation()):
            yield from nodes(child, f"{path}.{key}".lstrip("."))


def compares_layers(target: str) -> bool:
    """Whether a term compares hidden states, and so names their stack; read from its source."""
    found = signature(target)
    return found.takes("stack") or "stack" in found.flags


def build(node: DictConfig | dict[Any, Any], **extra: Any) -> Any:
    """The object that a node describes; `extra` are the arguments that the code gives."""
    from hydra.utils import instantiate

    return instantiate(node, **extra)


def needs_teacher(target: str) -> bool:
    """Whether a term compares with a teacher: its class says `needs_teacher`."""
    return bool(signature(target).flags.get("needs_teacher", True))


@lru_cache(maxsize=256)
def signature(target: str) -> Signature:
    """The arguments that a dotted path takes. Raises: UserError for a path that leads nowhere."""
    parts = target.split(".")
    spec, depth = _locate(parts)
    if spec is None:
        raise UserError(f"no module '{parts[0]}'; write the dotted path of a class or function")
    if depth == len(parts):
        raise UserError("it is a module; write the dotted path of a class or function in it")
    module, names = ".".join(parts[:depth]), parts[depth:]
    if spec.origin is None or not spec.origin.endswith(".py"):
        if spec.submodule_search_locations is not None:
            raise UserError(f"{module} has no '{names[0]}'{did_you_mean(names[0], _submodules(spec))}")
        return _imported(module, names)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    definition = _definition(tree, names[0])
    if isinstance(definition, ast.ImportFrom):
        origin = next(a.name for a in definition.names if (a.asname or a.name) == names[0])
        return signature(".".join([_absolute(definition, module, spec), origin, *names[1:]]))
    if definition is None:
        known = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)] + _submodules(spec)
        if any(_makes_names(node, names[0]) for node in tree.body):
            return _imported(module, names)
        raise UserError(f"{module} has no '{names[0]}'{did_you_mean(names[0], known)}")
    read = _read(tree, definition, names)
    return read if read is not None else _imported(module, names)


@lru_cache(maxsize=256)
def own_source(target: str) -> Path | None:
    """The file of a target that is neither kdlab's nor an installed package's; None for all others."""
    parts = target.split(".")
    spec, _ = _locate(parts) if parts[0] != "kdlab" else (None, 0)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    return None if any(path.is_relative_to(place) for place in installed) else path


def node_problems(path: str, node: DictConfig) -> Iterator[str]:
    """What is wrong with one node, whose dotted path is `path`."""
    given = GIVEN.get(path, frozenset())
    described = DESCRIPTIONS.get(path, frozenset())
    target = node._get_node("_target_")
    try:
        wanted = signature(str(node["_target_"]))
    except OmegaConfBaseException:
        return  # an interpolation that leads nowhere is reported where all of them are
    except UserError as error:
        yield f"{path}: _target_ '{target}' does not exist: {error}"
        return
    known = [p.name for p in wanted.parameters]
    for key in map(str, node):
        if key.startswith("_") or key in described:
            continue
        if key not in known:
            if not wanted.open_ended:
                free = [f"{path}.{k}" for k in known if k not in given]
                nearest = did_you_mean(f"{path}.{key}", free) if did_you_mean(key, known) else ""
                yield f"unknown key '{path}.{key}': {wanted.name} takes no '{key}'" + (
                    nearest or f"; it takes {', '.join(k for k in known if k not in given) or 'nothing'}"
                )
        elif not node._get_node(key)._is_interpolation() and not OmegaConf.is_missing(node, key):  # type: ignore[union-attr]
            misfit = wanted.misfit(key, node[key])
            if misfit:
                yield f"{path}.{key} must be {misfit}, got {node[key]!r}"
    for parameter in wanted.parameters:
        if parameter.required and parameter.name not in given and parameter.name not in list(node):
            yield f"{path} lacks '{parameter.name}', which {wanted.name} needs; write {path}.{parameter.name}: ..."


def _locate(parts: list[str]) -> tuple[ModuleSpec | None, int]:
    """The spec of the longest prefix that is a module, found without importing any parent."""
    search: Any = None
    found: tuple[ModuleSpec | None, int] = (None, 0)
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        spec = PathFinder.find_spec(name, search) if depth > 1 or name not in sys.modules else None
        if spec is None and name in sys.modules:
            spec = sys.modules[name].__spec__
        if spec is None and depth == 1:
            spec = importlib.util.find_spec(name)  # builtin and editable-install finders
        if spec is None:
            break
        found = (spec, depth)
        search = spec.submodule_search_locations
        if search is None:
            break
    return found


def _submodules(spec: ModuleSpec) -> list[str]:
    folders = [Path(p) for p in spec.submodule_search_locations or ()]
    return [f.stem for folder in folders if folder.is_dir() for f in folder.iterdir() if f.suffix in ("", ".py")]


def _definition(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef | ast.ImportFrom | None:
    for node in reversed(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return node
    return None


def _makes_names(node: ast.stmt, name: str) -> bool:
    """Whether a statement may make `name` when the module is imported."""
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def _absolute(node: ast.ImportFrom, module: str, spec: ModuleSpec) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if spec.submodule_search_locations is not None else module.split(".")[:-1]
    return ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))


def _read(tree: ast.Module, definition: ast.ClassDef | ast.FunctionDef, names: list[str]) -> Signature | None:
    """The signature from the syntax tree; None when only an import can tell."""
    aliases = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    if isinstance(definition, ast.FunctionDef):
        return _function(definition, names[-1], aliases, {}, bound=False) if len(names) == 1 else None
    methods = {n.name: n for n in definition.body if isinstance(n, ast.FunctionDef)}
    if len(names) == 2 and names[1] in methods:
        static = any(ast.unparse(d) == "staticmethod" for d in methods[names[1]].decorator_list)
        return _function(methods[names[1]], ".".join(names), aliases, {}, bound=not static)
    if len(names) > 1:
        return None
    flags = {
        n.target.id: n.value.value
        for n in definition.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and isinstance(n.value, ast.Constant)
    }
    if "__init__" in methods:
        return _function(methods["__init__"], names[0], aliases, flags, bound=True)
    if any("dataclass" in ast.unparse(d) for d in definition.decorator_list) and not definition.bases:
        return Signature(names[0], tuple(_fields(definition)), False, aliases, flags)
    return None if definition.bases else Signature(names[0], (), False, aliases, flags)


def _fields(definition: ast.ClassDef) -> Iterator[Parameter]:
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        required = node.value is None
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("field"):
            given = {k.arg: k.value for k in node.value.keywords}
            if "init" in given and ast.unparse(given["init"]) == "False":
                continue
            required = not {"default", "default_factory"} & set(given)
        yield Parameter(node.target.id, required, node.annotation)


def _function(
    node: ast.FunctionDef, name: str, aliases: Mapping[str, ast.expr], flags: Mapping[str, Any], *, bound: bool
) -> Signature:
    plain = node.args.posonlyargs + node.args.args
    optional = {a.arg for a in plain[len(plain) - len(node.args.defaults) :]} if node.args.defaults else set()
    optional |= {a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None}
    taken = plain[1:] if bound else plain
    parameters = tuple(Parameter(a.arg, a.arg not in optional, a.annotation) for a in taken + node.args.kwonlyargs)
    return Signature(name, parameters, node.args.kwarg is not None, aliases, flags)


def _imported(module: str, names: list[str]) -> Signature:
    """The signature from the living object: for compiled modules, inherited constructors and names made at import."""
    found: Any = importlib.import_module(module)
    for name in names:
        if not hasattr(found, name):
            raise UserError(f"{module} has no '{name}'{did_you_mean(name, dir(found))}")
        found = getattr(found, name)
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return Signature(names[-1], (), True, {}, {})
    star = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = tuple(Parameter(p.name, p.default is p.empty) for p in parameters if p.kind not in star)
    return Signature(names[-1], named, any(p.kind == p.VAR_KEYWORD for p in parameters), {}, {})
