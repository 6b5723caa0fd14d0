"""Every notebook runs top to bottom in a kernel of its own, in an empty folder, and says what it should."""

import csv
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kdlab.data import toy

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 3600  # of one cell, on a busy machine
TOLERANCE = 2.0  # BLEU: another processor rounds otherwise, and short trainings part


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


def printed_scores(ran, name):
    """BLEU by model as a notebook's own text says it."""
    return {row[0]: float(row[1]) for row in rows(ran.cells[name]["source"])[1:]}


def scores(ran, name):
    """BLEU by model and objective as a notebook's run found it."""
    return {tuple(row[:2]): float(row[2]) for row in ran.table(name)[1:]}


def test_01_and_03_train_compare_and_find_a_planted_mistake(run, tmp_path):
    ran = run("01_distillation", tmp_path)

    assert re.findall(r"  (run|reuse|skip)$", ran.shown("plan"), re.M) == ["run"] * 9
    found = scores(ran, "result")
    teacher, alone, hybrid = found["teacher", ""], found["student alone", "nll"], found["student", "hybrid"]
    assert teacher > hybrid > alone + 3 and alone > 3
    assert printed_scores(ran, "end") == pytest.approx(
        {"teacher": teacher, "student alone": alone, "student, hybrid": hybrid}, abs=TOLERANCE
    )
    assert ran.shown("curves").count("<circle") > 10
    assert "KL(teacher || student), both at temperature 1] on all rows" in ran.shown("objective")

    soft = [[float(cell) for cell in row[1:]] for row in ran.table("soft-labels")[1:]]
    assert len(soft) == 6 and soft[0][0] > soft[0][1] > soft[0][2] > 0 and sum(row[1] for row in soft) <= 1.001
    for sharp, usual, flat in soft[1:]:  # p**2 and p**0.2, up to a factor that all tokens share
        assert sharp / soft[0][0] == pytest.approx((usual / soft[0][1]) ** 2, abs=0.02)
        assert flat / soft[0][2] == pytest.approx((usual / soft[0][1]) ** 0.2, abs=0.05)
    first, _ = next(toy.generate("test", 1, 1))
    assert first in ran.shown("translations") and len(ran.shown("own-line").splitlines()) == 3
    assert [row[1] for row in ran.table("check")[1:]] == ["yes"] * 10

    ran = run("03_own_objective", tmp_path)

    assert "teacher: reuse train_model" in ran.shown("compare") and "baseline: reuse" in ran.shown("compare")
    numbers = [float(number) for number in re.findall(r"\d+\.\d+(?:e-\d+)?", ran.shown("try-it"))]
    assert len(numbers) == 11 and all(
        skew < min(kl, 2.3026) for kl, skew in zip(numbers[:5], numbers[5:10], strict=True)
    )
    assert numbers[10] < 1e-5
    held = {row[0]: row[1] for row in ran.table("check-mine")[1:]}
    assert set(held.values()) == {"yes", "does not apply"} and held["zero at equality"] == "yes"
    missed = {row[0]: row[1] for row in ran.table("check-mistake")[1:]}
    assert [name for name, state in missed.items() if state == "NO"] == ["zero at equality"]
    assert "exit code: 1" in ran.shown("check-mistake")
    found = {objective: score for (_, objective), score in scores(ran, "report").items()}
    assert found["nll"] == alone and found["word_kd"] > alone and found["skew_kl"] > alone
    printed = printed_scores(ran, "end")
    assert list(printed.values()) == pytest.approx(
        [found[name] for name in ("nll", "word_kd", "skew_kl")], abs=TOLERANCE
    )
    usual, own, difference, p = map(float, re.findall(r"[-+]?\d+\.\d+", ran.shown("significance")))
    assert (usual, own) == (found["word_kd"], found["skew_kl"]) and abs(own - usual - difference) < 0.11 and 0 < p <= 1


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

    shapes = {tuple(row[:3]): row[3:] for row in ran.table("shape-table")}
    assert shapes["Slim 1x1", "KD+NLL", "measured"] == ["wmt20", "2", "-9.8"]
    assert shapes["Wide 1x1", "KD-only", "published"] == ["WMT20", "1", "-18.7"]
    assert shapes["Slim 3x3", "KD+NLL", "published"] == ["WMT20", "1", "-10.4"]

    assert "seq_interpolation_small: not run yet." in ran.shown("seq-interpolation-small")
    assert "<figure>" not in ran.shown("seq-interpolation-small")
    assert ran.shown("seq-interpolation").count("<figure>") == 2
    assert ["", "", "published", "32.4"] in ran.table("seq-interpolation")
    assert "35.36" in ran.shown("a-row")
    assert any(re.search(r"1\d\.\d", cell) for row in ran.table("low-data-multi30k") for cell in row)
