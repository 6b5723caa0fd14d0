"""Noisy student: rounds in which the student of the round before is the teacher."""

import dataclasses

import pytest

from kdlab import compose
from kdlab.artifacts.stage import plan_keys, round_of
from kdlab.errors import ConfigError
from kdlab.sweep import graph
from tests.unit.test_recipes import keys, plan

NOISY = ["recipe=noisy_student", "source_noise=default"]
FIRST = ["hypotheses", "pseudo_label", "student", "evaluate"]


def again(number, names=FIRST):
    return [f"{name}_{number}" for name in names]


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose.compose([*NOISY, *overrides])
    return caught.value.problems


def test_every_round_has_the_student_before_as_its_teacher():
    steps = {step.name: step for step in plan(*NOISY, "rounds=3", "teacher_cache=hidden")}
    names = [*FIRST[:2], "cache_teacher", *FIRST[2:]]
    start, end = ["corpus", "teacher", "evaluate_teacher"], ["baseline", "evaluate_baseline"]
    assert list(steps) == [*start, *names, *again(2, names), *again(3, names), *end]
    for number, teacher in ((2, "student"), (3, "student_2")):
        inputs = {name: steps[f"{name}_{number}"].inputs for name in names}
        assert inputs["hypotheses"] == {"corpus": "corpus", "teacher": teacher}
        assert inputs["pseudo_label"] == {"corpus": "corpus", "hypotheses": f"hypotheses_{number}"}
        made = {"labels": f"pseudo_label_{number}", "teacher": teacher}
        assert inputs["cache_teacher"] == {"corpus": "corpus", **made}
        assert inputs["student"] == {"corpus": "corpus", **made, "cache": f"cache_teacher_{number}"}
        assert inputs["evaluate"] == {"corpus": "corpus", "model": f"student_{number}"}
        for name in names:  # everything else is the first round's
            step = steps[f"{name}_{number}"]
            assert dataclasses.replace(step, name=name, inputs=steps[name].inputs) == steps[name]
        assert steps[f"student_{number}"].local["name"] == f"student_{number}"
    assert steps["student"].params["source_noise"]["drop"] == 0.1 and "source_noise" not in steps["teacher"].params


def test_rounds_share_what_came_before():
    three = keys(*NOISY, "rounds=3")
    one, hybrid = keys(*NOISY, "rounds=1"), keys("source_noise=default")
    assert one == hybrid == {name: three[name] for name in one}
    assert len(set(three.values())) == len(three)


def test_models_that_need_no_teacher_are_fetched_once(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("weights.safetensors", "tokenizer/tokenizer.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"architecture": {}}', encoding="utf-8")
    steps = {step.name: step for step in plan(*NOISY, f"labels.reverse.path={tmp_path}")}
    assert [name for name in steps if name.startswith("reverse")] == ["reverse"]
    for name, source in (("pseudo_label", "hypotheses"), ("pseudo_label_2", "hypotheses_2")):
        assert steps[name].inputs == {"corpus": "corpus", "hypotheses": source, "reverse": "reverse"}


def test_later_rounds_are_reported_and_can_be_asked_for():
    assert (round_of("evaluate_2"), round_of("evaluate_12")) == (2, 12)
    assert [round_of(name) for name in ("evaluate", "evaluate_teacher", "teacher_2")] == [None] * 3
    for until in ("student_2", "hypotheses_3", "evaluate_3"):
        assert compose.compose([*NOISY, "rounds=3", f"until={until}"]).cfg.until == until
    (problem,) = problems("until=hypotheses_3")  # of two rounds
    assert problem.startswith("until=hypotheses_3 is no step of recipe=noisy_student")
    steps = plan(*NOISY, "rounds=3")
    point = graph.Point([], "here", steps, plan_keys(steps))
    (array,) = [job for job in graph.jobs([point], lambda *_: False, 1) if job.name == "students"]
    untils = [task.overrides[-1] for task in array.tasks]
    assert untils == ["until=evaluate", "until=evaluate_baseline", "until=evaluate_2", "until=evaluate_3"]


def test_what_does_not_fit_a_student_as_teacher_is_refused():
    (problem,) = problems("student=toy_2x2", "init=layer_skip")
    assert "init=layer_skip starts each student from its teacher" in problem
    (problem,) = problems("objective=triple", "objective.terms.cos.term.projection=true", "weight_cos=1")[-1:]
    assert "compares layers of student and teacher" in problem
    assert "rounds must be >= 1, got 0" in problems("rounds=0")[0]
