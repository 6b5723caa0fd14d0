"""The deck's grids: as many students as its tables have, each once, and one teacher for all."""

import pytest

from kdlab import compose, grid
from kdlab.recipes.plan import make_plan
from kdlab.sweep import __main__ as command
from kdlab.sweep import graph

STUDENTS = {
    "hinton_wmt20": 44,
    "distilbert_ablation_wmt20": 27,
    "seq_interpolation_wmt20": 8,
    "hybrid_wmt20": 6,
    "low_data_wmt20": 6,
}


def points(name):
    _, lines = command._lines([f"sweep={name}"])
    return [command._point(composed) for composed in grid.points(lines, make_plan)]


@pytest.fixture(scope="module")
def deck():
    return {name: points(name) for name in STUDENTS}


def test_the_grids_expand_to_the_decks_ninety_two_runs(deck):
    assert {name: len(graph.students(found)) for name, found in deck.items()} == STUDENTS
    every = [point for found in deck.values() for point in found]
    students = {task.key for task in graph.students(every)}
    teachers = {point.keys["teacher"] for point in every}
    assert (len(students), len(teachers)) == (91, 1)
    folders = [point.folder for point in every]
    assert len(set(folders)) == len(folders)


def test_shared_steps_are_one_job_and_students_wait_for_them(deck):
    jobs = {job.name: job for job in graph.jobs(deck["hybrid_wmt20"], lambda stage, key: False, label_tasks=3)}
    assert list(jobs) == ["teacher", "labels", "choose", "students", "report"]
    assert [len(job.tasks) for job in jobs.values()] == [1, 3, 1, 6, 0]
    assert [job.after for job in jobs.values()] == [None, "teacher", "labels", "choose", "students"]
    assert [job.anyhow for job in jobs.values()] == [False] * 3 + [True] * 2


def test_the_students_alone_of_the_temperature_grid_are_four(deck):
    alone = [task for task in graph.students(deck["hinton_wmt20"]) if task.overrides[-1] == "until=evaluate_baseline"]
    assert len(alone) == 4


def test_a_point_that_stops_early_asks_for_no_more():
    line = ["+experiment=hybrid_wmt20", "until=evaluate_baseline"]
    (point,) = (command._point(one) for one in grid.points([line], make_plan))
    jobs = graph.jobs([point], lambda stage, key: False, label_tasks=3)
    assert [job.name for job in jobs] == ["students", "report"]
    assert [task.key for task in jobs[0].tasks] == [point.keys["evaluate_baseline"]]


def test_what_is_done_is_not_submitted_again(deck):
    found = deck["hybrid_wmt20"]
    done = {(step.stage, found[0].keys[step.name]) for step in found[0].steps}
    jobs = graph.jobs(found, lambda stage, key: (stage, key) in done, label_tasks=3)
    assert [(job.name, len(job.tasks)) for job in jobs] == [("students", 5), ("report", 0)]


def test_a_grid_that_does_not_exist_is_named(capsys):
    assert command.main(["submit", "sweep=hinton_wmt2"]) == 1
    assert "sweep=hinton_wmt2 does not exist; did you mean 'hinton_wmt20'" in capsys.readouterr().err


def test_a_verb_that_does_not_exist_is_named(capsys):
    assert command.main(["submitt"]) == 1
    assert "'submitt' is no verb of kdlab.sweep; did you mean 'submit'" in capsys.readouterr().err
    assert compose.options("cluster") == ["default", "one_gpu"]
