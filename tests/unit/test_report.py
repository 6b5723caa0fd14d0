"""The report: what it reads, what it marks as missing, how it looks."""

import pytest

from kdlab import files
from kdlab.errors import UserError
from kdlab.report.collect import collect, run_folders
from kdlab.report.table import render

BLEU = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def artefact(store, stage, key, *, summary=None, scores=None, **manifest):
    folder = store / stage / key
    files.write_json(folder / "manifest.json", {"stage": stage, "key": key, "summary": summary or {}, **manifest})
    if scores:
        files.write_json(folder / "scores.json", scores)


def scores(bleu, chrf, sentences=100, speed=50.0):
    metrics = {"bleu": {"score": bleu, "signature": BLEU}, "chrf": {"score": chrf, "signature": "chrf-signature"}}
    return {**metrics, "sentences": sentences, "sentences_per_s": speed}


def run(runs, point, seed, steps, recipe="hybrid"):
    config = {"seed": seed, "teacher": {"seed": 1}, "recipe": {"_target_": f"kdlab.recipes.{recipe}.plan"}}
    steps = {name: {"stage": stage, "key": key} for name, (stage, key) in steps.items()}
    files.write_json(runs / "toy" / point / "run.json", {"overrides": [], "config": config, "steps": steps})
    return runs / "toy" / point


@pytest.fixture
def two_seeds(tmp_path):
    store, runs = tmp_path / "store", tmp_path / "runs"
    artefact(store, "train_model", "t", summary={"parameters": 6_500_000}, cpu_seconds=900.4)
    artefact(store, "evaluate_model", "et", device="cpu", scores={"a": scores(40, 60), "b": scores(30, 50, 300, 75)})
    for seed in (1, 2):
        steps = {"teacher": ("train_model", "t"), "evaluate_teacher": ("evaluate_model", "et")}
        for step, evaluation in (("baseline", "evaluate_baseline"), ("student", "evaluate")):
            steps |= {step: ("train_model", f"{step}{seed}"), evaluation: ("evaluate_model", f"e{step}{seed}")}
            artefact(store, "train_model", f"{step}{seed}", summary={"parameters": 1_000_000}, cpu_seconds=100 + seed)
            scored = {"a": scores(37 + seed, 55.55), "b": scores(27, 45)}
            artefact(store, "evaluate_model", f"e{step}{seed}", device="cpu", scores=scored)
        run(runs, f"seed={seed}", seed, steps)
    return store, runs


def test_rows_in_the_order_of_a_paper_and_a_shared_teacher_once(two_seeds):
    store, runs = two_seeds
    rows = collect(run_folders(runs, "toy"), store)
    assert [(row.model, row.seed) for row in rows] == [
        ("teacher", 1),
        ("student alone", 1),
        ("student alone", 2),
        ("student, hybrid", 1),
        ("student, hybrid", 2),
    ]
    assert rows[0].parameters == 6_500_000 and rows[0].train_cpu_s == 900.4
    assert rows[4].tests["a"].bleu == 39 and rows[4].run == "toy/seed=2"


def test_table_is_aligned_markdown_with_signatures_below(two_seeds):
    store, runs = two_seeds
    text = render(collect([runs / "toy" / "seed=1"], store))
    assert text == (
        "| model           | parameters | a BLEU | a chrF | b BLEU | b chrF | sentences/s | training CPU-s |\n"
        "| --------------- | ---------: | -----: | -----: | -----: | -----: | ----------: | -------------: |\n"
        "| teacher         |  6,500,000 |   40.0 |   60.0 |   30.0 |   50.0 |        66.7 |            900 |\n"
        "| student alone   |  1,000,000 |   38.0 |   55.5 |   27.0 |   45.0 |        50.0 |            101 |\n"
        "| student, hybrid |  1,000,000 |   38.0 |   55.5 |   27.0 |   45.0 |        50.0 |            101 |\n"
        "\n"
        f"BLEU: {BLEU}\n"
        "chrF: chrf-signature\n"
    )
    assert "| seed |" in render(collect(run_folders(runs, "toy"), store))


def test_gaps_and_mixed_devices_are_marked(two_seeds):
    store, runs = two_seeds
    (store / "evaluate_model" / "ebaseline1" / "manifest.json").unlink()  # not finished
    (store / "train_model" / "student1" / "manifest.json").unlink()  # removed after its evaluation
    scored = {"a": {"bleu": {"score": 1, "signature": "x"}}}
    artefact(store, "evaluate_model", "estudent1", device="cuda", scores=scored)
    text = render(collect([runs / "toy" / "seed=1"], store)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[3:5]]
    assert cells[0] == ["student alone", "1,000,000", "-", "-", "-", "-", "-", "101"]
    assert cells[1] == ["student, hybrid", "-", "1.0", "-", "-", "-", "-", "-"]
    assert f"BLEU (a, b): {BLEU}" in text and "BLEU (a): x" in text
    assert any("device of decoding is cpu and cuda" in line for line in text)
    assert text[-1].startswith("-: not computed")


def test_train_only_is_the_student_alone(tmp_path):
    artefact(tmp_path / "store", "evaluate_model", "e", scores={"a": scores(1, 2)})
    folder = run(tmp_path / "runs", "x", 7, {"evaluate": ("evaluate_model", "e")}, recipe="train_only")
    assert [row.model for row in collect([folder], tmp_path / "store")] == ["student alone"]


def test_a_folder_that_is_no_run_is_told(tmp_path):
    (tmp_path / "run.json").write_text('{"config": {}}')
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"no run\.json"):
            collect([folder], tmp_path)
