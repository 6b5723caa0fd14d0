"""Notebooks are kept as they were written, not as they ran: no outputs, no settings of an editor, short cells.

That they name no path of one machine is held by test_files.py, as for all files.
"""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
MOST = 40  # lines of code in a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def problems(text):
    """What keeps a notebook from being committed."""
    notebook, found = json.loads(text), []
    if notebook["metadata"] != METADATA or (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        found.append("its metadata are not METADATA")
    ids = [cell["id"] for cell in notebook["cells"]]
    if len(set(ids)) < len(ids):
        found.append("two cells have one id")
    for cell in notebook["cells"]:
        if cell["metadata"]:
            found.append(f"{cell['id']}: it has metadata")
        if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None):
            found.append(f"{cell['id']}: it has outputs; clear them before the commit")
        if cell["cell_type"] == "code" and len(cell["source"]) > MOST:
            found.append(f"{cell['id']}: {len(cell['source'])} lines of code, at most {MOST}")
    if text != json.dumps(notebook, indent=1, ensure_ascii=False) + "\n":
        found.append("it is not written as Jupyter writes it")
    return found


def test_there_are_all():
    assert [path.stem for path in NOTEBOOKS] == ["01_distillation", "02_tables", "03_own_objective"]


def test_a_notebook_is_clean(path):
    assert problems(path.read_text(encoding="utf-8")) == []


def test_what_a_run_leaves_is_found():
    def cell(**changes):
        return {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], **changes}

    def found(*cells, **changes):
        notebook = {"cells": list(cells), "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5, **changes}
        return problems(json.dumps(notebook, indent=1) + "\n")

    clean = cell(source=["1 + 1"])
    assert found(clean) == []
    assert len(found(clean, clean)) == 1
    assert len(found(cell(source=[], execution_count=3))) == 1
    assert len(found(cell(source=[], outputs=[{"output_type": "stream"}]))) == 1
    assert len(found(cell(source=[], metadata={"collapsed": True}))) == 1
    assert len(found(cell(source=["x\n"] * (MOST + 1)))) == 1
    assert len(found(metadata={"kernelspec": {"name": "my-env"}})) == 1
