"""Imports only go down: the matrix of the rooms (README.md) over the syntax tree of every file, inner imports too."""

import ast
from pathlib import Path

import pytest

import kdlab

PACKAGE = Path(kdlab.__file__).parent
FREE = {"errors", "runtime", "files"}  # everyone may import them
ROOMS = {
    # the ground floor
    "artifacts": set(),
    "data": {"types"},
    "models": {"types", "products"},
    "objectives": {"types", "products"},
    "teachers": {"types", "models"},
    "strategies": {"types", "models"},
    "deploy": {"types", "models"},
    "decoding": {"types", "models", "data", "deploy"},
    "evaluation": {"types", "decoding", "data"},
    "training": {"types", "models", "teachers", "objectives", "data", "strategies"},
    "stages": {
        *("types", "data", "models", "objectives", "teachers", "strategies"),
        *("decoding", "evaluation", "training", "deploy"),
    },
    "recipes": {"stages", "artifacts", "targets"},
    "report": {"artifacts"},
    "sweep": {"artifacts", "report", "models.shapes", "targets", "strategies.footprint", "strategies.trainings"},
    "checks": {"types", "data", "models", "objectives", "teachers", "strategies", "training", "artifacts"},
}
# Files beside the rooms. What makes and checks a configuration (one room in several files), then the commands, each
# with the room that it shows.
CONFIGURATION = {
    *(
        "schema",
        "targets",
        "validation",
        "contradictions",
        "teacher_checks",
        "huggingface_checks",
        "term_checks",
        "label_checks",
        "logger_checks",
        "compose",
        "points",
        "usage",
    ),
    "effects",
    "grid",
}
COMMANDS = {
    "run": {"report"},
    "translate": {"decoding", "models", "data", "types"},
    "dashboard": set(),
    "check": {"checks"},
    "report": {"report"},
    "sweep": {"sweep", "planned", "strategies.footprint"},
    "budget": {"planned", "strategies.footprint", "strategies.lecture", "strategies.trainings", "models.shapes"},
}
LIGHT = {
    "artifacts",
    "recipes",
    "report",
    "sweep",
    "stages",
    "run",
    "check",
    "budget",
    "planned",
    "dashboard",
    *FREE,
    *CONFIGURATION,
}
LIGHT |= {"strategies.footprint", "strategies.lecture"}  # what a sweep may ask before a GPU is there
HEAVY = {
    *("torch", "lightning", "pytorch_lightning", "torchmetrics", "transformers", "datasets", "sacrebleu", "numpy"),
    *(
        "sentencepiece",
        "pyarrow",
        "pandas",
        "safetensors",
        "jaxtyping",
        "wandb",
        "wandb_workspaces",
        "ctranslate2",
        "PIL",
    ),
}

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(tree, *, top_level_only=False):
    """Dotted names that a file imports; `from a import b` gives a.b where that is a module of ours, else a."""
    found = []
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports from the root: from kdlab.room.file import ..."
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(inner if inner.removeprefix("kdlab.") in FILES else str(node.module))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_level_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    return found


def of_kdlab(names):
    return {name.removeprefix("kdlab").removeprefix(".") for name in names if name.split(".")[0] == "kdlab"}


def parse(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def allowed(module):
    """What a file may import; None for a file that has no place in the matrix."""
    room, _, rest = module.partition(".")
    if module == "types":
        return {"errors"}
    if module in ("", "products", *FREE):
        return set()
    if rest == "__main__":
        return COMMANDS.get(room, set()) | CONFIGURATION | {"recipes", "artifacts"} | FREE
    if room in ROOMS and (PACKAGE / room).is_dir():
        return ROOMS[room] | FREE | {room}
    if module == "teacher_checks":
        return CONFIGURATION | FREE | {"models.layer_rules"}  # whether a teacher's layers fit; knows no torch
    if module == "term_checks":
        return CONFIGURATION | FREE | {"objectives.layer_pairs"}  # which layers are compared; knows no torch
    if module == "planned":
        return CONFIGURATION | FREE | {"artifacts", "strategies.trainings"}  # trainings before they run
    if module in CONFIGURATION:
        return CONFIGURATION | FREE
    if module in COMMANDS:
        return COMMANDS[module] | CONFIGURATION | {"recipes", "artifacts"} | FREE
    return None


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_what_stands_below_it(module):
    may = allowed(module)
    assert may is not None, f"kdlab/{module}.py has no place: add it to the rooms of README.md and of this test"
    used = of_kdlab(imports(parse(module)))
    beyond = {name for name in used if name and not any(f"{name}.".startswith(f"{room}.") for room in may)}
    assert beyond - {module} == set(), f"kdlab.{module} may import {sorted(may)} only"


def top_level_closure(module, seen):
    """Modules of ours that importing `module` runs, with what each imports from elsewhere: {module: {package}}."""
    parts = module.split(".")
    for name in ["", *(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))]:
        if name in seen or name not in FILES:
            continue
        names = imports(parse(name), top_level_only=True)
        seen[name] = {other.split(".")[0] for other in names} - {"kdlab"}
        for inner in of_kdlab(names):
            top_level_closure(inner, seen)
    return seen


@pytest.mark.parametrize("module", [m for m in FILES if {m, m.split(".")[0]} & LIGHT and not m.endswith("__main__")])
def test_light_modules_import_nothing_heavy(module):
    """--help and dry_run must answer at once: heavy packages are imported inside the functions that use them."""
    heavy = {f"{inner}: {name}" for inner, used in top_level_closure(module, {}).items() for name in used & HEAVY}
    assert heavy == set()


def test_the_walk_sees_what_it_should():
    code = """
import os, torch.nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from kdlab.data import corpus
try:
    from kdlab import files
except ImportError:
    pass
class A:
    import numpy as np
    def f(self):
        from kdlab.artifacts.store import Store
        import importlib
        importlib.import_module("kdlab.training.fit")
"""
    inner = {"kdlab.data.corpus", "kdlab.artifacts.store", "importlib", "kdlab.training.fit"}
    top = {"os", "torch.nn", "typing", "kdlab.files", "numpy"}
    assert set(imports(ast.parse(code), top_level_only=True)) == top
    assert set(imports(ast.parse(code))) == top | inner
