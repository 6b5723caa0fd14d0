"""Every notebook runs top to bottom in a kernel of its own, in an empty folder, and says what it should."""

import csv
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 900  # of one cell, on a busy machine


class Ran:
    """A notebook after its run: what a reader sees below each cell."""

    def __init__(self, notebook):
        self.cells = {cell["id"]: cell for cell in notebook["cells"]}

    def shown(self, name):
        """All that a cell prints or displays, as text."""
        parts = []
        for output in self.cells[name]["outputs"]:
            if output["output_type"] == "stream":
                parts.append(output["text"])
            else:
                parts += [output["data"][kind] for kind in ("text/markdown", "text/html") if kind in output["data"]]
        return "\n".join(parts)

    def table(self, name):
        """The Markdown tables that a cell shows, line by line as lists of cells."""
        return rows(self.shown(name))


def rows(text):
    """Lines of Markdown tables, without rules."""
    found = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.split("\n") if line[:1] == "|"]
    return [row for row in found if not set("".join(row)) <= set("-: ")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook of the repository in an empty folder; an error in a cell fails the test with its traceback."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(name, folder):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        NotebookClient(notebook, timeout=LONGEST_S, resources={"metadata": {"path": str(folder)}}).execute()
        return Ran(notebook)

    return run


@pytest.fixture
def experiments(tmp_path):
    """The repository's experiments, with a temperature table of ours that is known, and one that has not run."""
    folder = tmp_path / "experiments"
    shutil.copytree(ROOT / "experiments", folder)
    shutil.rmtree(folder / "seq_interpolation_small", ignore_errors=True)
    shutil.rmtree(folder / "hinton_1x1_small", ignore_errors=True)
    small = folder / "hinton_1x1_small"
    shutil.copytree(folder / "hinton_1x1_wmt20", small)
    with open(ROOT / "experiments" / "toy" / "results.csv", newline="") as file:
        header = next(csv.reader(file))
    with open(small / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for temperature, bleu in {"0.5": 21.0, "1": 22.0, "2": 23.5, "5": 20.0, "10": 12.25}.items():
            for seed, more in enumerate((0.0, 0.5), 1):
                cell = {"model": "student", "student": "slim_1x1", "temperature": temperature, "bleu": bleu + more}
                cell |= {"key": f"{temperature}-{seed}", "test": "wmt20", "seed": seed, "state": "done"}
                writer.writerow(cell | {"settings": "objective.terms.nll.weight=1", "bleu_signature": "nrefs:1"})
    return folder


def test_02_shows_what_is_measured_beside_what_is_published(run, tmp_path, experiments):
    ran = run("02_tables", tmp_path)

    published = ran.table("hinton-1x1")
    at = [row[:3] for row in published].index(["Wide 1x1", "KD+NLL", "measured"])
    assert set(published[at][3:8]) == {"not run"}
    assert published[at + 1][2:8] == ["published", "32.8", "34.6", "30.8", "26.1", "22.1"]
    assert "hinton_1x1_wmt20: not run yet." in ran.shown("hinton-1x1")

    ours = ran.table("hinton-1x1-small")
    (measured,) = [row for row in ours if row[:3] == ["Slim 1x1", "KD+NLL", "measured"]]
    assert measured[3:8] == ["21.2 ± 0.4 (2)", "22.2 ± 0.4 (2)", "23.8 ± 0.4 (2)", "20.2 ± 0.4 (2)", "12.5 ± 0.4 (2)"]
    drawn = ran.shown("hinton-1x1-small")
    assert "not run yet" not in drawn and drawn.count("<figure>") == 1
    assert "Slim 1x1, KD+NLL, measured" in drawn and "Slim 1x1, KD+NLL, published" in drawn

    shapes = {tuple(row[:4]): row[4:] for row in ran.table("shape-table")}
    assert shapes["hinton_1x1_small", "Slim 1x1", "KD+NLL", "measured"] == ["2", "-9.8"]
    assert shapes["hinton_1x1_wmt20", "Wide 1x1", "KD-only", "published"] == ["1", "-18.7"]
    assert shapes["hinton_3x3_wmt20", "Slim 3x3", "KD+NLL", "published"][0] in ("0.5", "1")

    assert "seq_interpolation_small: not run yet." in ran.shown("seq-interpolation-small")
    assert "<figure>" not in ran.shown("seq-interpolation-small")
    assert ran.shown("seq-interpolation").count("<figure>") == 2
    assert ["", "", "published", "32.4"] in ran.table("seq-interpolation")
    assert "35.36" in ran.shown("a-row")
    assert any(re.search(r"1\d\.\d", cell) for row in ran.table("low-data-small") for cell in row)
