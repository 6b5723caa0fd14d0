"""The house rules that a machine can check: length, names, docstrings, nothing of one machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted(path for folder in ("kdlab", "tests") for path in (ROOT / folder).rglob("*.py"))
MODULES = [path for path in PYTHON if ROOT / "kdlab" in path.parents]
TEXT = {".py", ".yaml", ".yml", ".md", ".toml", ".lock", ".sh", ".csv", ".json", ".ipynb", ".sbatch", ""}
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
ON_ONE_MACHINE = re.compile(r"(?<![\w.}>)-])/(?:home|root|work|Users|mnt|scratch|opt)/\w")


def name(path):
    return path.relative_to(ROOT).as_posix()


def texts():
    """Files of the repository: what git knows or would add, or everything beside hidden and generated folders."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\0")
    if len(listed) < 2:  # an unpacked source archive
        listed = [name(path) for path in ROOT.rglob("*") if not {".venv", "store", "runs"} & set(path.parts)]
    return [ROOT / one for one in listed if one and Path(one).suffix in TEXT and (ROOT / one).is_file()]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_no_file_is_too_long_or_has_a_name_that_says_nothing(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert not FORBIDDEN & set(path.stem.split("_"))
    assert path.parent.name not in FORBIDDEN


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name)
def test_every_package_says_in_three_lines_what_it_is(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    if path.parent.name != "kdlab":
        assert len(body) == 1, "an __init__ holds its docstring and nothing else"
        assert len([line for line in text.splitlines() if line.strip()]) == 3


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_what_is_public_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the file has no docstring"
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_every_room_is_a_package():
    folders = {path.parent for path in MODULES}
    assert [name(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_nothing_belongs_to_one_machine():
    found = [
        f"{name(path)}:{number}: {line.strip()[:100]}"
        for path in texts()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if ON_ONE_MACHINE.search(line)
    ]
    assert found == []
