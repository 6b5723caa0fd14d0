"""The scripts of kdlab.sweep, run by bash with another command in the place of kdlab.run."""

import shlex
import subprocess
import sys

from omegaconf import OmegaConf

from kdlab import schema
from kdlab.sweep import __main__ as command
from kdlab.sweep import scripts, status
from kdlab.sweep.graph import Job, Task
from kdlab.sweep.record import Submitted

OVERRIDES = [["seed=1", "name=a b"], ["seed=2", "name='it''s' $HOME"]]
JOB = Job("students", [Task(overrides, "p", "evaluate_model", "k") for overrides in OVERRIDES], None)


def cluster():
    return OmegaConf.to_container(OmegaConf.load(schema.config_dir() / "cluster" / "default.yaml"))


def test_a_task_is_what_was_submitted_whatever_is_written_later(tmp_path):
    text = scripts.script(JOB, sweep="s", folder=tmp_path, cluster=cluster(), report=[])
    text = text.replace(f"{shlex.quote(sys.executable)} -m kdlab.run --point", r"printf '%s\n'")
    assert not list(tmp_path.iterdir())  # nothing beside the script can change it
    for number, overrides in enumerate(OVERRIDES):
        env = {"SLURM_ARRAY_TASK_ID": str(number), "HOME": "/h", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["bash"], input=text, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == overrides


def test_status_shows_no_line_of_an_earlier_submission(tmp_path, monkeypatch):
    monkeypatch.setattr(status.slurm, "queue", lambda jobs: {})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "students_7_0.log").write_text("kdlab: of another point\n")
    sweep = Submitted(tmp_path, tmp_path / "store", [], [JOB], {"students": "8"})
    assert [one.note for one in status.states(sweep)] == ["no log: it never started"] * 2


def test_what_is_in_the_queue_is_not_submitted_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["submit", "+debug=small", "recipe=train_only", "objective=nll"]
    assert command.main([*line, "dry_run=true"]) == 0
    (folder,) = (tmp_path / "runs" / ".sweeps").iterdir()
    Submitted(folder, tmp_path / "store", [], [JOB], {"students": "7"}).write()
    asked = []
    monkeypatch.setattr(command.slurm, "queue", lambda jobs: {f"{job}_0": "RUNNING" for job in jobs})
    monkeypatch.setattr(command.slurm, "submit", lambda *_, **__: asked.append(1))
    assert command.main(line) == 1  # the same folder with dry_run and without
    assert "1 tasks of this sweep are still in the queue" in capsys.readouterr().err and not asked


def test_tasks_that_would_find_no_gpu_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["submit", "+debug=small", "recipe=train_only", "objective=nll", "trainer.device=cuda", "strategy=zero2"]
    assert command.main([*line, "cluster.gpus=1"]) == 1
    assert "write cluster.gpus=2" in capsys.readouterr().err
