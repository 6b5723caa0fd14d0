"""kdlab.sweep run with real trainings: rows as points end, a failure that stays one cell, stops, grids that meet."""

import contextlib
import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kdlab.report import results
from kdlab.report.__main__ import main as report
from kdlab.sweep import __main__ as command

TINY = [
    *("recipe=word_kd", "objective=word_kd", "+debug=small", "trainer.tokens_per_step=300"),
    *("data.train.0.num_lines=800", "data.valid.num_lines=10", "data.tests.toy.num_lines=20", "vocab_size=200"),
    *("teacher.max_steps=4", "max_steps=60", "trainer.val_every=60", "trainer.checkpoint_every=5"),
]
BROKEN = "weight_kd=1e39"  # infinite in fp32
FOUR = [f"{BROKEN},2", "weight_kd=2 baseline=false", "weight_kd=2 name=other"]
OTHERWISE = {"cpu_hours", "sentences_per_s", "commit", "command"}  # what differs between equal runs
PATIENCE_S = 300


def run(folder, *arguments, **grids):
    """Exit code and all that is said; `grids`: lines of named grids."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(command, "FOLDER", folder)
        for name, lines in grids.items():
            (folder / f"{name}.yaml").write_text(f"grids: {json.dumps(lines)}")
        code = command.main(["run", *TINY, *arguments])
    return code, said.getvalue()


def table(folder, name="toy"):
    return folder / "experiments" / name / "results.csv"


def rows(folder, name="toy"):
    """Rows by key and test, without what differs between equal runs."""
    found = {(one.key, one.test): dataclasses.asdict(one) for one in results.read(table(folder, name))}
    return {place: {k: v for k, v in one.items() if k not in OTHERWISE} for place, one in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A grid of four points, one broken, one the same in another experiment; run once, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = run(folder, "sweep=four", four=FOUR)
    return folder, code, said


def test_a_failed_point_is_one_cell_and_rows_are_those_of_the_report(whole, monkeypatch):
    folder, code, said = whole
    assert code == 1
    assert "4 points: 0 done, 4 to do" in said and "4/4 points" in said
    (failure,) = [line for line in said.splitlines() if "failed (exit code 1)" in line]
    assert failure.startswith("kdlab: toy weight_kd=1e+39: ") and "not finite" in failure
    found = results.read(table(folder))
    states = sorted((one.model, one.state) for one in found)
    assert states == [("baseline", "done"), ("student", "done"), ("student", "failed"), ("teacher", "done")]
    assert all(one.bleu_p is not None for one in found if (one.model, one.state) == ("student", "done"))
    assert "not finite" in (folder / "experiments/toy/report.md").read_text()
    monkeypatch.chdir(folder)
    assert report(["experiments/toy", "runs/toy"]) == 0
    again = results.read(table(folder))
    assert sorted(again, key=str) == sorted(found, key=str)


def test_grids_that_share_a_point_train_it_once_and_both_get_its_rows(whole):
    folder = whole[0]
    grids = {name: [f"name={name} weight_kd=2", "name=both weight_kd=2"] for name in ("first", "second")}
    trained = sorted((folder / "store/train_model").glob("*/manifest.json"))
    code, said = run(folder, "sweep=first,second", **grids)
    assert code == 0
    assert "second: 2 points, 1 of them in a grid above: 0 done, 1 to do" in said and "3/3 points" in said
    assert sorted((folder / "store/train_model").glob("*/manifest.json")) == trained
    known = rows(folder)
    for name in ("first", "second", "both"):
        assert len(rows(folder, name)) == 3  # teacher, student, student alone
        assert rows(folder, name) == {place: known[place] for place in rows(folder, name)}
        assert all(f"name={name}" in one.command for one in results.read(table(folder, name)))


def test_told_to_stop_in_the_middle_the_rows_are_those_of_an_uninterrupted_run(whole, tmp_path):
    arguments = [sys.executable, "-m", "kdlab.sweep", "run", *TINY, "weight_kd=2", "workers=2"]
    log = tmp_path / "runner.log"
    with log.open("wb") as file:
        runner = subprocess.Popen(arguments, cwd=tmp_path, stdout=file, stderr=file)
    try:
        models = tmp_path / "store/train_model"
        wait(lambda: any(models.glob("*/manifest.json")) and any(models.glob("*.work-*/scratch/*")), runner)
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(PATIENCE_S) == 130, log.read_text()
    finally:
        runner.kill()
        runner.wait()
    assert "to go on: python -m kdlab.sweep run recipe=word_kd" in log.read_text()
    assert not (tmp_path / "experiments/toy/report.md").exists()
    code, said = run(tmp_path, "weight_kd=2")
    assert code == 0, said
    (point,) = (tmp_path / "runs/.sweeps").glob("*/logs/toy/*.log")
    assert "resuming what an earlier run left" in point.read_text()
    assert len(rows(tmp_path)) == 3
    assert rows(tmp_path) == {place: one for place, one in rows(whole[0]).items() if place in rows(tmp_path)}


def test_finished_cells_are_skipped_without_runs_and_store(whole, tmp_path):
    shutil.copytree(whole[0] / "experiments", tmp_path / "experiments")
    before = table(tmp_path).read_bytes()
    code, said = run(tmp_path, "sweep=three", three=[FOUR[0].replace(f"{BROKEN},", "weight_kd="), *FOUR[1:]])
    assert code == 0 and "3 points: 3 done, 0 to do" in said
    assert not (tmp_path / "runs").exists() and not (tmp_path / "store").exists()
    assert table(tmp_path).read_bytes() == before
    code, said = run(tmp_path, "sweep=four", "dry_run=true", four=FOUR)  # what has failed is not done
    assert "4 points: 3 done, 1 to do" in said and "2 students and 1 shared steps" in said


def wait(done, process):
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
