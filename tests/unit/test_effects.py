"""A value that nothing reads is refused; every other leaf of the configuration changes the plan."""

import pytest
from omegaconf import DictConfig

from kdlab import effects, run
from kdlab.compose import compose


def leaves(node, prefix=""):
    for name, value in node.items_ex(resolve=False):
        path = f"{prefix}{name}"
        if isinstance(value, DictConfig) and len(value):
            yield from leaves(value, f"{path}.")
        else:
            yield path


def idle_leaves(overrides):
    composed = compose(overrides)
    problems = effects.idle(composed.unresolved, list(leaves(composed.unresolved)), run.make_plan)
    return {problem.partition("=")[0] for problem in problems}


# Only what belongs to another choice: folders to read, a logger, a term.
UNUSED = {
    "teacher.path",
    "data.root",
    "logger.wandb",
    "weight_cos",
    "rounds",
    "subset_seed",
    "labels.reverse.drop_share",
}
UNUSED |= {f"teacher_cache.{name}" for name in ("dtype", "top_k", "temperatures")}


def test_t10_every_leaf_of_the_toy_changes_the_plan():
    assert idle_leaves([]) <= UNUSED


def test_t10_without_a_teacher_its_settings_are_idle_and_the_others_are_not():
    found = idle_leaves(["recipe=train_only", "objective=nll"])
    assert {"temperature", "weight_kd", "mix", "teacher.max_steps", "label_decode.beam_size", "baseline"} <= found
    assert "weight_nll" in found  # objective=nll has a weight of its own
    assert not found & {"seed", "optim.lr", "student.d_model", "decode.beam_size", "trainer.precision"}


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["weight_kd=0", "temperature=3"], ["temperature"]),
        (["labels.drop_copies=true", "labels.reverse.drop_share=0.1"], ["labels.reverse.drop_share"]),
        (["teacher_cache=top_k", "temperature=2", "teacher_cache.temperatures=[0.5,1,2]"], []),
        (["recipe=seq_kd", "objective=seq_kd", "mix=0", "label_decode.beam_size=2"], []),
        (["recipe=word_kd", "objective=word_kd", "label_decode.beam_size=2", "seed=3"], ["label_decode.beam_size"]),
        (["recipe=train_only", "objective=nll", "teacher.seed=3", "name=x", "until=student"], ["teacher.seed"]),
        (["objective.terms.kd={weight: 0.0}", "objective.terms.kd.term.t_squared=false"], ["objective.terms.kd.term"]),
    ],
)
def test_t10_what_the_user_wrote_in_vain_is_refused(overrides, idle, capsys):
    assert run.main([*overrides, "dry_run=true"]) == (1 if idle else 0)
    said = capsys.readouterr().err
    assert said.count("has no effect") == len(idle)
    assert all(f"{key}" in said for key in idle)


def test_t10_in_a_sweep_it_must_be_idle_in_every_point(capsys):
    assert run.main(["-m", "weight_kd=0,1", "temperature=2", "dry_run=true"]) == 0
    assert run.main(["-m", "weight_kd=0", "temperature=1,2", "dry_run=true"]) == 1
    assert "temperature has no effect in any point of the sweep" in capsys.readouterr().err


def test_t10_a_group_that_works_in_one_point_is_no_mistake(capsys):
    assert run.main(["-m", "teacher_cache=hidden", "weight_kd=0,1", "dry_run=true"]) == 0
    assert run.main(["-m", "teacher_cache=hidden", "weight_kd=0", "seed=1,2", "dry_run=true"]) == 1
    assert "teacher_cache has no effect in any point of the sweep" in capsys.readouterr().err
    mixes = ["mix=0.5", "weight_pseudo=0", "dry_run=true"]
    assert run.main(["-m", "recipe=word_kd,hybrid", *mixes]) == 0
    assert run.main(["-m", "recipe=word_kd", "seed=1,2", *mixes]) == 1
    assert "mix has no effect in any point of the sweep" in capsys.readouterr().err


def test_two_runs_of_a_grid_never_share_a_name(capsys):
    assert run.main(["-m", "until=teacher,student", "dry_run=true"]) == 1
    assert "two points are other runs (until=teacher; until=student) but both have the name" in capsys.readouterr().err
    gathered = ["strategy=fsdp", "trainer.precision=bf16"]
    one, other = (compose([*gathered, f"strategy.gather={kind}"]) for kind in ("fp32", "bf16"))
    assert one.point != other.point and "strategy.gather=bf16" in other.point
    assert compose(["strategy=ddp"]).point == compose([]).point  # which changes no result


def test_a_folder_of_runs_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run.main([f"paths.runs={tmp_path}/file/runs", f"paths.store={tmp_path}/store", "until=corpus"]) == 1
    assert "cannot be written (Not a directory)" in capsys.readouterr().err
