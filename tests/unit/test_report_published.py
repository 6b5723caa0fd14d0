"""The deck's tables from stored runs: report.md shows the published CSVs cell by cell, and where they are wrong."""

import csv
import shutil
from pathlib import Path

import pytest

from kdlab.report.__main__ import main
from tests.report_runs import Runs

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
STUDENTS = {
    "Slim 1x1": "slim_1x1", "Wide 1x1": "wide_1x1", "Slim 3x3": "slim_3x3", "Wide 3x3": "wide_3x3",
    "1x1 wide": "wide_1x1", "3x3 slim": "slim_3x3", "3x3 wide": "wide_3x3",
}  # fmt: skip
TESTS = {"WMT13": "wmt13", "WMT14": "wmt14_full", "WMT18": "wmt18", "WMT19": "wmt19", "WMT20": "wmt20"}
LOSSES = {
    "KD-only": {"nll": 0.0, "kd": 1.0},
    "KD+NLL": {"nll": 1.0, "kd": 1.0},
    "NLL+cos": {"nll": 1.0, "kd": 0.0, "cos": 1.0},
    "KD+cos": {"nll": 0.0, "kd": 1.0, "cos": 1.0},
    "KD+NLL+cos": {"nll": 1.0, "kd": 1.0, "cos": 1.0},
}
# What the deck prints and its own numbers contradict, with what they give; each has its footnote in tables.yaml.
DEFECTS = {
    ("hinton_1x1_wmt20", "Wide 1x1", "compression"): ("5.0", "4.9"),
    ("distilbert_ablation_wmt20", "DistilBERT", "KD+cos", "max"): ("23.7", "24.2"),
    ("distilbert_ablation_wmt20", "DistilBERT", "KD+cos", "max_delta"): ("-0.7", "-0.2"),
    ("low_data_wmt20", "1x1 wide", "KD+NLL", "params_compression"): ("95M/5.0", "95.0M/4.9"),
}


def published(name, file="published.csv"):
    with open(EXPERIMENTS / name / file, newline="") as lines:
        return list(csv.DictReader(lines))


def is_score(cell):
    return cell.replace(".", "", 1).isdigit()


def temperatures(runs, name):
    """Runs of a table by temperature; the student alone comes with every one of them."""
    rows = published(name)
    for row in rows:
        for column in [column for column in row if column.startswith("T=") and is_score(row[column])]:
            if row["loss"] not in LOSSES:
                continue
            student = STUDENTS[row["arch"]] if "arch" in row else "wide_1x1"
            alone = [other for other in rows if other["loss"] == "Baseline" and other.get("arch") == row.get("arch")]
            runs.add(
                name,
                student=student,
                weights=LOSSES[row["loss"]],
                temperature=float(column.removeprefix("T=")),
                init="layer_skip" if row.get("init") == "DistilBERT" else "random",
                scores={"wmt20": float(row[column])},
                alone={"wmt20": float(alone[0][column])} if alone else None,
                baseline=bool(alone),
            )


def ratios(runs, name):
    for file, student in (("published_wide_1x1.csv", "wide_1x1"), ("published_slim_3x3.csv", "slim_3x3")):
        for row in published(name, file):
            scores = {"wmt20": float(row["sacreBLEU"])}
            weights = {"gold": 1.0, "pseudo": 1.0}
            runs.add(
                name,
                recipe="seq_kd",
                student=student,
                mix=float(row["gold_ratio"]),
                weights=weights,
                scores=scores,
                baseline=False,
            )


def hybrids(runs, name, of="hybrid_wmt20", share=None):
    for row in published(of):
        scores = {test: float(row[column]) for column, test in TESTS.items() if is_score(row[column])}
        weights = {"gold": 0.0 if row["loss"] == "KD-only" else 1.0, "pseudo": 1.0, "kd": 1.0}
        told = {"recipe": "hybrid", "share": share, "tests": list(scores), "weights": weights}
        if row["arch"] == "24x6 wide":
            if scores:
                runs.add(name, **told, teacher=scores, baseline=False)
        elif scores and row["loss"] == "Baseline":
            runs.add(name, **told, student=STUDENTS[row["arch"]], alone=scores)
        elif scores:
            runs.add(name, **told, student=STUDENTS[row["arch"]], scores=scores, baseline=False)


def low_data(runs, name):
    hybrids(runs, name, "low_data_wmt20", 0.05)
    hybrids(runs, name, "hybrid_wmt20", 1.0)


MAKE = {
    "hinton_1x1_wmt20": temperatures,
    "hinton_3x3_wmt20": temperatures,
    "distilbert_ablation_wmt20": temperatures,
    "seq_interpolation_wmt20": ratios,
    "hybrid_wmt20": hybrids,
    "low_data_wmt20": low_data,
}


@pytest.fixture(scope="module", params=MAKE)
def reported(request, tmp_path_factory):
    """A copy of an experiment's folder with the report of runs that have the deck's scores."""
    root = tmp_path_factory.mktemp("report")
    folder = root / request.param
    shutil.copytree(EXPERIMENTS / request.param, folder, ignore=shutil.ignore_patterns("results.csv", "report.*"))
    MAKE[request.param](Runs(root), request.param)
    assert main([str(folder), f"runs={root / 'runs'}"]) == 0
    return folder


def markdown_tables(text):
    """By title: rows as cells, the header first; footnote marks are cut off."""
    found = {}
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        cells = [[cell.partition(" [")[0].strip() for cell in line.split("|")[1:-1]] for line in lines]
        found[title] = [cells[0], *cells[2:]]
    return found


def blocks(table):
    """Of a published-style table: labels -> line (measured, published, ...) -> cells."""
    header, *rows = table
    width = header.index("")
    found, labels = {}, None
    for row in rows:
        if any(row[:width]) or labels is None:
            labels = tuple(row[:width])
            found[labels] = {}
        found[labels][row[width]] = dict(zip(header[width + 1 :], row[width + 1 :], strict=True))
    return found


def same(ours, printed):
    if is_score(ours.lstrip("-")) and is_score(printed.lstrip("-")):
        return float(ours) == float(printed)
    return ours == printed or (printed == "-" and not ours)


def test_measured_cells_are_the_published_ones(reported):
    name, tables = reported.name, markdown_tables((reported / "report.md").read_text())
    seen = 0
    files = sorted(path.name for path in reported.glob("published*.csv"))
    titles = [title for title in tables if "published table" in title]
    for file, title in zip(sorted(files, key=lambda f: ("slim" in f, f)), titles, strict=True):
        rows, found = published(name, file), blocks(tables[title])
        labels = tables[title][0][: tables[title][0].index("")]
        for row in rows:
            place = tuple(row[label] for label in labels)
            cells = {column: cell for column, cell in row.items() if column not in labels}
            lines = found[place]
            if any(cells.values()):
                assert lines["published"] == cells
            if "measured" not in lines:
                assert place in {("", "Weights"), ("24x6 wide", "(header only)"), ("3x3 wide (2nd; header only)", "")}
                continue
            for column, printed in cells.items():
                ours = lines["measured"][column]
                defects = [value for key, value in DEFECTS.items() if {*key} <= {name, *place, column}]
                if file == "published_relative.csv" and place != ("3x3 wide", "KD+NLL") and column in TESTS:
                    assert ours == ("not run" if printed else "")  # one of the two sides is not in the deck
                elif defects and same(printed, defects[0][0]):
                    assert ours == defects[0][1], (place, column)
                else:
                    assert same(ours, printed), (place, column, ours, printed)
                    seen += bool(ours)
    assert seen >= {"hinton_1x1_wmt20": 39, "hinton_3x3_wmt20": 40, "distilbert_ablation_wmt20": 45}.get(name, 8)


def test_relative_low_data_follows_from_both_tables(reported):
    if reported.name != "low_data_wmt20":
        return
    tables = markdown_tables((reported / "report.md").read_text())
    row = blocks(tables["Change from all data to 5 % (published table)"])["3x3 wide", "KD+NLL"]
    assert [row["measured"][test] for test in TESTS] == ["-2.2", "-1.8", "-1.9", "-1.8", "-1.8"]
    assert {row["difference"][test] for test in TESTS} == {"0.0"}


def test_known_defects_have_a_footnote_at_their_cell(reported):
    text = (reported / "report.md").read_text()
    assert "Charles et al. 2021" in text
    for (name, *_), (printed, _) in DEFECTS.items():
        if name == reported.name:
            assert f"{printed} [" in text


def test_the_report_is_the_same_from_results_csv_alone(reported, tmp_path):
    folder = tmp_path / reported.name
    shutil.copytree(reported, folder)
    for name in ("report.md", "report.tex"):
        (folder / name).unlink()
    before = (folder / "results.csv").read_bytes()
    assert main([str(folder), f"runs={tmp_path / 'none'}"]) == 0
    for name in ("report.md", "report.tex", "results.csv"):
        assert (folder / name).read_bytes() == (reported / name).read_bytes()
    assert before == (reported / "results.csv").read_bytes()


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXPERIMENTS.glob("*/report.md")))
def test_a_committed_report_follows_from_its_results(name, tmp_path):
    shutil.copytree(EXPERIMENTS, tmp_path, dirs_exist_ok=True)  # a published table may be a neighbour's
    folder = tmp_path / name
    (folder / "report.md").unlink()
    assert main([str(folder), f"runs={tmp_path / 'none'}"]) == 0
    assert (folder / "report.md").read_bytes() == (EXPERIMENTS / name / "report.md").read_bytes()
    if (EXPERIMENTS / name / "results.csv").exists():
        assert (folder / "results.csv").read_bytes() == (EXPERIMENTS / name / "results.csv").read_bytes()
