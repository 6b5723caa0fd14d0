"""python -m kdlab.report: significance, what is missing or not comparable, its files and what they need."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from kdlab import run
from kdlab.artifacts.store import Store
from kdlab.errors import UserError
from kdlab.evaluation.sacrebleu import score
from kdlab.report import results
from kdlab.report.__main__ import main
from kdlab.report.facts import command, settings
from kdlab.report.gather import collected, gather
from kdlab.report.results import Result
from kdlab.report.significance import Significance
from tests.report_runs import BLEU, CHRF, Runs
from tests.unit.test_report_published import blocks, markdown_tables

TABLES = """
tables:
  - title: Temperature
    published: published.csv
    where: {test: wmt20, student: slim_1x1}
    rows:
      loss: {none: {model: baseline}, KD: {model: student, objective.terms.nll.weight: 1}}
    columns: {T1: {temperature: 1}, T2: {temperature: 2}}
"""


def systems(folder, sentences=150):
    """A reference and three systems with more and more wrong words; their statistics as evaluate_model writes them."""
    draw = random.Random(3)
    words = [f"word{n}" for n in range(60)]
    reference = [" ".join(draw.choice(words) for _ in range(draw.randint(4, 14))) for _ in range(sentences)]
    lines = {"reference": reference}
    for name, errors in (("better", 0.30), ("good", 0.31), ("bad", 0.36)):
        lines[name] = [
            " ".join(draw.choice(words) if draw.random() < errors else word for word in line.split())
            for line in reference
        ]
    for name, some in lines.items():
        (folder / name).write_text("".join(f"{line}\n" for line in some))
    statistics = {}
    for name in ("better", "good", "bad"):
        found = score(lines[name], [reference])
        statistics[name] = {metric: one["statistics"] for metric, one in found.items()}
        (folder / f"{name}.json").write_text(json.dumps(statistics[name]))
    return statistics


def test_p_values_are_those_of_the_sacrebleu_command(tmp_path):
    systems(tmp_path)
    names = ["bad", "good", "better"]
    asked = ["reference", "-i", *names, "--paired-bs", "-m", "bleu", "chrf", "-f", "text"]
    told = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *asked], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    printed = [
        float(p_value) for p_value in re.findall(r"\(p = ([\d.]+)\)", told)
    ]  # good: BLEU, chrF; better: the same
    test = Significance(tmp_path / "cache.json")
    ours = [
        test.p_value(tmp_path / "bad.json", tmp_path / f"{name}.json", metric, signature)
        for name in ("good", "better")
        for metric, signature in (("bleu", BLEU), ("chrf", CHRF))
    ]
    assert [round(p_value, 4) for p_value in ours] == printed
    assert len(set(printed)) > 2  # not only the smallest value that there is


def test_p_values_are_cached_by_content_and_other_settings_have_none(tmp_path, monkeypatch):
    systems(tmp_path, 20)
    files = [tmp_path / "bad.json", tmp_path / "good.json"]
    first = Significance(tmp_path / "cache.json")
    p_value = first.p_value(*files, "bleu", BLEU)
    assert first.p_value(*files, "bleu", BLEU.replace("13a", "zh")) is None
    assert first.p_value(*files, "bleu", BLEU.replace("2.6.0", "2.5.1")) == p_value
    first.save()
    monkeypatch.setattr(Significance, "_resampled", lambda *_: pytest.fail("computed again"))
    assert Significance(tmp_path / "cache.json").p_value(*files, "bleu", BLEU) == p_value
    (tmp_path / "good.json").write_text((tmp_path / "better.json").read_text())
    with pytest.raises(pytest.fail.Exception):
        Significance(tmp_path / "cache.json").p_value(*files, "bleu", BLEU)


def report(root, *places):
    folder = root / "study"
    folder.mkdir(exist_ok=True)
    (folder / "tables.yaml").write_text(TABLES)
    (folder / "published.csv").write_text("loss,T1,T2\nnone,20.0,20.0\nKD,22.0,\n")
    assert main([str(folder), f"runs={root / 'runs'}", *map(str, places)]) == 0
    text = (folder / "report.md").read_text()
    return text, blocks(markdown_tables(text)["Temperature"])


def grid(root, statistics=None):
    runs = Runs(root)
    for seed in (1, 2, 3):
        runs.add(
            "study",
            seed=seed,
            scores={"wmt20": 20.0 + seed},
            alone={"wmt20": 19.0 + seed},
            statistics=statistics,
            curve=(1.0, 2.0 + seed),
        )
    return runs


def test_mean_spread_gain_significance_and_published_number(tmp_path):
    found = systems(tmp_path, 60)
    grid(tmp_path, {"student": {"wmt20": found["good"]}, "baseline": {"wmt20": found["bad"]}})
    text, rows = report(tmp_path)
    p_value = json.loads((tmp_path / "store" / "significance.json").read_text())
    bleu = next(value for name, value in p_value.items() if " bleu " in name)
    assert rows["none",]["measured"] == {"T1": "21.0 ± 1.0 (3)", "T2": "21.0 ± 1.0 (3)"}
    assert rows["KD",] == {
        "measured": {"T1": "22.0 ± 1.0 (3)", "T2": ""},
        "published": {"T1": "22.0", "T2": ""},
        "difference": {"T1": "0.0", "T2": ""},
        "gain over no KD": {"T1": f"+1.0, p {bleu:.3f}", "T2": ""},
    }
    assert "c0ffee" in text and "24.7" in text and BLEU.replace("|", "\\|") in text


def test_failed_and_missing_cells_are_marked_and_filled_later(tmp_path):
    runs = grid(tmp_path)
    runs.add("study", seed=4, temperature=1.0, error="ValueError: no\nspace")
    runs.add("study", seed=1, temperature=2.0, error="OSError: gone")
    text, rows = report(tmp_path)
    assert rows["KD",]["measured"] == {"T1": "22.0 ± 1.0 (3)", "T2": "failed"}
    assert "seed 4 failed: ValueError: no space" in text and "(OSError: gone)" in text
    assert len(results.finished(tmp_path / "study" / "results.csv")) == 6
    for place in (tmp_path / "runs").glob("*/*/error.txt"):
        place.unlink()
    assert report(tmp_path)[1]["KD",]["measured"]["T2"] == "missing"
    runs.add("study", seed=1, temperature=2.0, scores={"wmt20": 18.0})
    text, rows = report(tmp_path)
    assert rows["KD",]["measured"]["T2"] == "18.0" and rows["KD",]["gain over no KD"]["T2"] == "-2.0"


def test_scores_with_different_signatures_are_never_side_by_side(tmp_path):
    runs = grid(tmp_path)
    other = BLEU.replace("13a", "zh")
    runs.add("study", temperature=2.0, scores={"wmt20": 30.0}, signature=other)
    text, rows = report(tmp_path)
    assert rows["KD",]["measured"] == {"T1": "22.0 ± 1.0 (3)", "T2": "other signature"}
    assert "gain over no KD" in rows["KD",] and rows["KD",]["gain over no KD"]["T2"] == ""
    tables = markdown_tables(text)
    assert [len(tables[f"BLEU, {signature}"]) for signature in (BLEU, other)] == [4, 2]
    assert tables[f"BLEU, {other}"][0][-1] == "wmt20"  # and no gain over a student alone that was scored otherwise


def test_two_arms_in_one_cell_are_told_apart_and_devices_compared(tmp_path):
    runs = grid(tmp_path)
    runs.add("study", seed=5, temperature=1.0, mix=0.5, recipe="hybrid", scores={"wmt20": 30.0}, device="cuda")
    text, rows = report(tmp_path)
    assert rows["KD",]["measured"]["T1"] == "ambiguous"
    assert "recipe hybrid or word_kd" in text and "mix  or 0.5" in text
    assert "device of training is cpu and cuda" in text


def test_done_rows_stay_and_grow_on_another_machine(tmp_path):
    grid(tmp_path)
    report(tmp_path)
    path = tmp_path / "study" / "results.csv"
    before = path.read_text().splitlines()
    (tmp_path / "runs").rename(tmp_path / "gone")
    Runs(tmp_path).add("study", seed=9, scores={"wmt20": 25.0}, alone={"wmt20": 24.0}, temperature=2.0)
    report(tmp_path)
    after = path.read_text().splitlines()
    done = [line for line in before if ",missing," not in line]
    assert after[: len(done)] == done and len(after) == len(done) + 3  # teacher (missing), student alone, student


def test_a_row_keeps_its_cells_and_only_blank_ones_are_filled():
    old = Result(key="k", test="t", bleu=1.0, command="first", temperature="")
    new = dataclasses.replace(old, command="second", cpu_hours=3.0, temperature="5", settings="lr=1")
    assert results.merge([old], [new]) == [dataclasses.replace(old, cpu_hours=3.0, settings="lr=1")]
    again = dataclasses.replace(new, bleu=2.0)  # trained again, elsewhere: what was measured of it is not the old one's
    assert results.merge([old], [again]) == [dataclasses.replace(old, settings="lr=1")]
    failed = dataclasses.replace(old, state="failed")
    assert results.merge([failed], [new]) == [new] and results.merge([failed], []) == [failed]
    assert results.merge([failed, old], [dataclasses.replace(new, key="other")])[0] == old


def test_a_p_value_comes_along_only_with_the_student_alone_that_it_is_against():
    alone = Result(key="a", test="t", model="baseline", bleu=1.0)
    student = Result(key="s", test="t", bleu=3.0, bleu_p=0.01, chrf_p=0.02, baseline="a")
    assert results.union([[alone], [alone, student]]) == [alone, student]
    other = dataclasses.replace(alone, bleu=2.0)  # another training of it
    bare = dataclasses.replace(student, bleu_p=None, chrf_p=None)
    assert results.union([[other], [alone, student]]) == [other, bare]
    assert results.union([[other, bare], [alone, student]]) == [other, bare]  # nor is its blank cell filled
    assert results.union([[alone, bare], [alone, student]]) == [alone, student]
    own = dataclasses.replace(student, bleu_p=0.3)
    assert results.union([[other, own], [alone, student]]) == [other, own]


def test_statistics_of_another_training_give_no_p_value(tmp_path):
    statistics = systems(tmp_path)
    runs = Runs(tmp_path)
    kept = {"student": {"wmt20": statistics["good"]}, "baseline": {"wmt20": statistics["bad"]}}
    runs.add("study", scores={"wmt20": 22.0}, alone={"wmt20": 20.0}, statistics=kept)
    rows = [row for row in collected([tmp_path / "runs"]) if row.evaluated]
    known = gather(rows, [])
    assert [one.bleu_p is not None for one in known if one.model == "student"] == [True]
    for model in ("baseline", "student"):
        elsewhere = [
            dataclasses.replace(one, bleu_p=None, bleu=one.bleu and one.bleu - (one.model == model)) for one in known
        ]
        assert [one.bleu_p for one in gather(rows, elsewhere) if one.model == "student"] == [None]


@pytest.mark.parametrize("torn", ["<<<<<<< HEAD", "b,t,done", "b,t,dona,{}", "b,t,done,{},"])
def test_a_torn_results_csv_is_refused(tmp_path, torn):
    path = tmp_path / "results.csv"
    results.write(path, [Result(key="a", test="t", bleu=1.0)])
    path.write_text(path.read_text() + torn.format("," * (len(results.FIELDS) - 4)) + "\n")
    with pytest.raises(UserError, match="row 2 .* mend it"):
        results.read(path)


def test_results_csv_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="column 'a'"):
        results.read(tmp_path / "results.csv")


def test_the_page_stands_alone_and_shows_only_what_varies(tmp_path):
    runs = grid(tmp_path)
    report(tmp_path)
    page = (tmp_path / "study" / "report.html").read_text()
    assert not re.search(r"""(?:https?:)?//|\b(?:src|href)\s*=|url\(|@import|<script""", page)
    assert "against temperature" not in page and "validation BLEU" in page
    runs.add("study", temperature=2.0, scores={"wmt20": 18.0})
    runs.add("study", temperature=5.0, student="wide_1x1", scores={"wmt20": 28.0}, alone={"wmt20": 27.0}, speed=9.0)
    report(tmp_path)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "BLEU on wmt20 against temperature" in page and "speed and size" in page and "against mix" not in page
    for share in (0.05, 0.25, 1.0):
        runs.add("study", share=share, values=("gold_share",), scores={"wmt20": 9.0}, alone={"wmt20": 8.0 + share})
    report(tmp_path)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "BLEU on wmt20 against gold_share" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 4  # temperature, gold_share, speed and size, training
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        _, _, width, height = map(float, tree.attrib["viewBox"].split())
        for mark in tree.iter("circle"):
            assert 0 <= float(mark.attrib["cx"]) <= width and 0 <= float(mark.attrib["cy"]) <= height


def test_latex_has_every_cell_and_no_bare_special_letter(tmp_path):
    grid(tmp_path)
    report(tmp_path)
    text = (tmp_path / "study" / "report.tex").read_text()
    assert r"22.0 $\pm$ 1.0 (3)" in text and text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 4
    assert not re.search(r"(?<!\\)[_#]|±", text.partition("\n")[2])


def test_what_was_chosen_makes_an_arm_and_what_makes_no_difference_does_not():
    config = {"gold_share": 0.05, "baseline": False, "optim": {"lr": 0.5}, "objective": {"terms": {}}}
    choices = {
        "label_decode": "greedy",
        "labels": "first",
        "cluster": "one_gpu",
        "student": "toy_1x1",
        "decode": "beam5",
    }
    overrides = ["label_decode=greedy", "cluster=one_gpu", "student=toy_1x1", "+experiment=x", "optim.lr=0.5"]
    record = {"config": config, "choices": choices | {"experiment": "x"}, "overrides": overrides}
    record |= {"values": ["optim.lr", "baseline"], "steps": {"pseudo_label": {}}}
    named = ["gold_share", "pseudo_share"]
    assert settings("student", record, named) == {"label_decode": "greedy", "optim.lr": "0.5", "gold_share": "0.05"}
    assert settings("baseline", record, named) == {"optim.lr": "0.5", "gold_share": "0.05", "pseudo_share": ""}
    assert settings("teacher", record, named) == {"gold_share": "", "pseudo_share": ""}
    config["pseudo_share"] = 0.05
    assert settings("student", record, named)["pseudo_share"] == "0.05"
    record["steps"] = {}  # no pseudo-labels, so that it answers to none of their settings
    assert settings("student", record, named) == {"optim.lr": "0.5", "gold_share": "0.05", "pseudo_share": ""}


def test_the_command_forgets_the_machine(tmp_path, monkeypatch):
    data = tmp_path / "corpora"
    data.mkdir()
    monkeypatch.setenv("KDLAB_DATA", str(data))
    told = command([f"data.root={data}/multi30k", "paths.store=/x/y", "teacher.path=/a/model", "init.encoder=[0, 1]"])
    assert told == "python -m kdlab.run data.root=$KDLAB_DATA/multi30k teacher.path=<model> 'init.encoder=[0, 1]'"


def test_what_is_no_folder_of_runs_is_told(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 1 and main([]) == 1
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    assert "holds no run.json" in capsys.readouterr().err


def test_several_folders_make_one_report_in_the_first(tmp_path):
    grid(tmp_path)
    Runs(tmp_path).add("other", seed=4, temperature=2.0, scores={"wmt20": 30.0}, baseline=False)
    _, rows = report(tmp_path, tmp_path / "runs" / "other")
    assert rows["KD",]["measured"] == {"T1": "22.0 ± 1.0 (3)", "T2": "30.0"}
    assert not (tmp_path / "runs" / "other" / "report.md").exists()


def test_a_student_without_a_baseline_of_its_own_gets_the_one_that_is_alike(tmp_path):
    runs = Runs(tmp_path)
    runs.add("study", scores={"wmt20": 20.0}, alone={"wmt20": 19.0})
    runs.add("study", temperature=2.0, scores={"wmt20": 22.0}, baseline=False)
    runs.add("study", seed=2, temperature=2.0, scores={"wmt20": 40.0}, baseline=False)
    assert report(tmp_path)[1]["KD",]["gain over no KD"] == {"T1": "+1.0", "T2": "+3.0"}


def test_a_failed_run_leaves_its_error_and_what_it_was(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("planted")

    monkeypatch.setattr(Store, "walk", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="planted"):
        run.main(["temperature=2", "student=toy_1x1", "trainer.threads=1"])
    (folder,) = (tmp_path / "runs").glob("toy/*")
    assert (folder / "error.txt").read_text() == "ValueError: planted\n"
    record = json.loads((folder / "run.json").read_text())
    assert record["values"] == ["temperature"] and record["choices"]["student"] == "toy_1x1"
    assert main(["runs/toy"]) == 0
    assert (tmp_path / "runs" / "toy" / "report.md").read_text().count("ValueError: planted") >= 3
    monkeypatch.setattr(Store, "walk", lambda *_, **__: {})
    assert run.main(["temperature=2", "student=toy_1x1", "trainer.threads=1"]) == 0
    assert not (folder / "error.txt").exists()


def test_no_torch_is_loaded(tmp_path):
    found = {"wmt20": systems(tmp_path, 5)["bad"]}
    grid(tmp_path, {"student": found, "baseline": found})
    code = "import sys; from kdlab.report.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    place = str(tmp_path / "runs" / "study")
    told = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True)
    assert told.stdout == "0 False\n"
    assert all(
        result.bleu_p for result in results.read(tmp_path / "runs/study/results.csv") if result.model == "student"
    )
