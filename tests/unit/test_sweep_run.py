"""kdlab.sweep run without a training: what a grid will cost, which point is next, which command lines are refused."""

import threading
import time

import pytest

from kdlab import files
from kdlab.artifacts.stage import Step, plan_keys
from kdlab.report import results
from kdlab.report.results import Result
from kdlab.report.update import update
from kdlab.run import main as kdlab_run
from kdlab.sweep import __main__ as command
from kdlab.sweep import cost
from kdlab.sweep.cell import Cell
from kdlab.sweep.graph import Point
from kdlab.sweep.runner import Child, Places, Runner

GRID = ["run", "recipe=word_kd", "objective=word_kd", "temperature=1,2", "seed=1,2", "max_steps=100"]


def row(key, **values):
    alike = {"student": "toy_1x1", "recipe": "word_kd", "objective": "word_kd", "data": "toy", "max_steps": "100"}
    return Result(**{"key": key, "test": "toy", "train_device": "cpu", **alike, **values})


def table(text):
    """The numbers of each line of the printed tables: (number, steps, hours each, hours, known from)."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().split("  ") if cell.strip()]
        if line.startswith("  ") and cells[0] != "to be made":
            found[cells[0]] = cells[1:]
    return found


def test_hours_are_those_of_finished_rows_else_of_operations_at_their_rate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([*GRID, "dry_run=true"]) == 0
    before = table(capsys.readouterr().out)
    assert before["toy_1x1"][:3] == ["word_kd", "4", "400"] and before["toy_1x1"][-1] == cost.ASSUMED
    assert before["toy_1x1 alone"][:3] == ["nll", "2", "200"]  # one for each seed

    rows = [row("a", cpu_hours=0.5), row("a", test="other", cpu_hours=0.5), row("b", max_steps="50", cpu_hours=0.75)]
    rows += [row("c", cpu_hours=900.0, data="other"), row("d", cpu_hours=900.0, objective="js")]
    rows += [row("e", cpu_hours=900.0, state="failed"), row("f", cpu_hours=900.0, train_device="cuda")]
    results.write(tmp_path / "experiments" / "earlier" / "results.csv", rows)
    assert command.main([*GRID, "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    after = table(shown)
    assert after["toy_1x1"] == ["word_kd", "4", "400", "1", "4", cost.ROWS]  # the median of 0.5 and 1.5 for 100 steps
    assert after["toy_1x1 alone"] == before["toy_1x1 alone"]  # nothing like it has finished
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


def test_the_rate_is_that_of_finished_points_of_the_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        first = made(patch, [*GRID, "dry_run=true"])[0]
    assert first.evaluations.keys() == {"evaluate", "evaluate_baseline"}
    alone = row(first.evaluations["evaluate_baseline"], model="baseline", recipe="", objective="nll", cpu_hours=2.0)
    slow = row(first.point.keys["evaluate_teacher"], model="teacher", student="", recipe="", cpu_hours=500.0)
    results.write(tmp_path / "experiments" / "toy" / "results.csv", [alone, slow])  # slow, but of another size
    assert command.main([*GRID, "dry_run=true"]) == 0
    after = table(capsys.readouterr().out)
    assert after["toy_1x1 alone"] == ["nll", "2", "200", "2", "4", cost.ROWS]
    assert after["teacher toy_2x2"][-2:] == ["500", cost.ROWS]
    steps = {step.name: step for step in first.point.steps}
    size, beside = (cost.work.parameters(steps[name].params["model"]) for name in ("student", "teacher"))
    assert float(after["toy_1x1"][3]) == pytest.approx(2.0 * (6 * size + 2 * beside) / (6 * size), rel=0.01)
    assert after["toy_1x1"][-1] == cost.RATE


def test_hours_are_of_the_device_that_auto_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = row("a", train_device="cuda", cpu_hours=90.0, gpu_hours=0.5)
    results.write(tmp_path / "experiments" / "earlier" / "results.csv", [found])
    for device, known_from, unit in (("cuda", cost.ROWS, "GPU-hours"), ("cpu", cost.ASSUMED, "CPU-hours")):
        find = lambda wanted, device=device: device if wanted == "auto" else wanted  # noqa: E731
        monkeypatch.setattr("kdlab.runtime.device", find)
        assert command.main([*GRID, "trainer.device=auto", "dry_run=true"]) == 0
        shown = capsys.readouterr().out
        assert table(shown)["toy_1x1"][-1] == known_from
        assert unit in shown


def made(monkeypatch, line):
    """The cells of a command line."""
    found = []
    monkeypatch.setattr(command.local, "run", lambda cells, *_, **__: found.extend(cells) or 0)
    assert command.main(line) == 0
    return found


def step(name, params, **inputs):
    stage = "evaluate_model" if name.startswith("evaluate") else "train_model"
    return Step(name, stage, 1, params, inputs, run=lambda *_: {})


def cell(seed, teacher, temperature):
    steps = [
        step("teacher", {"teacher": teacher}),
        step("student", {"seed": seed, "temperature": temperature}, teacher="teacher"),
        step("evaluate", {}, model="student"),
        step("baseline", {"seed": seed}),
        step("evaluate_baseline", {}, model="baseline"),
    ]
    folder = f"name/{seed}-{teacher}-{temperature}"
    config = {"name": "name", "seed": seed, "until": None}
    return Cell("grid", Point([], folder, steps, plan_keys(steps)), {"config": config})


def starts(tmp_path, cells, running=()):
    runner = Runner(cells, {}, Places(tmp_path, tmp_path, tmp_path, tmp_path), 1, 1)
    runner.children = [Child(one, None, set(one.missing(runner.store))) for one in running]
    return [runner._next() for _ in cells]


def test_the_lowest_seed_is_first_and_who_would_wait_is_last(tmp_path):
    a, b, c, d = cell(2, "t", 1), cell(1, "t", 1), cell(1, "t", 2), cell(1, "u", 1)
    assert starts(tmp_path, [a, b, c, d]) == [b, c, d, a]
    other = cell(9, "u", 5)
    assert starts(tmp_path, [d, b], running=[other]) == [b, d]  # the teacher of d is being trained
    assert starts(tmp_path, [d, a], running=[other]) == [a, d]  # also before a lower seed
    for one in (b, d):  # teachers are there: only students alone may be waited for
        place = tmp_path / "train_model" / one.point.keys["teacher"]
        place.mkdir(parents=True)
        files.write_json(place / "manifest.json", {"key": place.name})
    assert starts(tmp_path, [c, a], running=[b]) == [c, a]  # its own student can be trained meanwhile
    assert starts(tmp_path, [c, cell(1, "t", 3)], running=[c])[0].point.folder == "name/1-t-3"


def test_what_another_process_makes_is_not_waited_for(tmp_path):
    one, other = cell(1, "t", 1), cell(2, "u", 1)
    (tmp_path / "train_model").mkdir()
    lease = files.Lease(tmp_path / "train_model" / f".{one.point.keys['teacher']}.lock")
    assert lease.try_acquire() is None
    try:
        assert starts(tmp_path, [one, other]) == [other, one]
    finally:
        lease.release()
    assert starts(tmp_path, [one, other]) == [one, other]


def test_a_torn_table_ends_no_other_point(tmp_path, monkeypatch, capsys):
    one = cell(1, "t", 1)
    runner = Runner([one], {}, Places(tmp_path, tmp_path, tmp_path, tmp_path / "logs"), 1, 1)
    path = runner.places.results(one)
    results.write(path, [row("a")])
    path.write_text(path.read_text() + "<<<<<<< HEAD\n")
    monkeypatch.setattr("kdlab.sweep.runner.subprocess.Popen", lambda *_, **__: None)
    runner._start(one)
    assert [child.cell for child in runner.children] == [one]
    (tmp_path / one.point.folder).mkdir(parents=True)
    monkeypatch.setattr("kdlab.sweep.runner.add_ended", lambda folder, runs: results.read(folder / "results.csv"))
    assert runner._gather(one) == 1 and "row 2" in capsys.readouterr().err


def test_two_writers_of_one_table_lose_no_row(tmp_path, monkeypatch):
    def slow(rows, known, named):
        time.sleep(0.3)  # the other one reads, if nothing keeps it from it, before this one writes
        return [*known, *rows]

    monkeypatch.setattr("kdlab.report.update.gather", slow)
    both = [threading.Thread(target=update, args=(tmp_path, [row(key)], [])) for key in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(one.key for one in results.read(tmp_path / "results.csv")) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["workers=0"], "workers=0, but it counts processes; write workers=1 or more"),
        (["sweep=hinton_wmt"], "sweep=hinton_wmt does not exist; did you mean 'hinton_wmt20'?"),
        (["recipe=train_only,word_kd", "objective=nll,word_kd"], "teacher"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path, monkeypatch, capsys, line, said):
    monkeypatch.chdir(tmp_path)
    assert command.main(["run", *line]) == 1
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_value_may_be_idle_in_one_point_and_not_in_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = ["recipe=word_kd", "objective=word_kd,logits_mse", "temperature=2"]
    assert command.main(["run", *grid, "dry_run=true"]) == 0
    idle = ["recipe=word_kd", "objective=logits_mse", "temperature=2", "dry_run=true"]
    assert command.main(["run", *idle]) == 1
    assert kdlab_run(["--point", *idle]) == 0 and kdlab_run(idle) == 1  # what is started, and what a user writes
    assert "temperature=2 has no effect" in capsys.readouterr().err
