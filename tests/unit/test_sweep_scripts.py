"""The scripts of kdlab.sweep, run by bash with another command in the place of kdlab.run."""

import re
import shlex
import subprocess
import sys

from omegaconf import OmegaConf

from kdlab import budget, schema
from kdlab.sweep import __main__ as command
from kdlab.sweep import scripts, status
from kdlab.sweep.graph import Job, Task
from kdlab.sweep.record import Submitted

OVERRIDES = [["seed=1", "name=a b"], ["seed=2", "name='it''s' $HOME"]]
JOB = Job("students", [Task(overrides, "p", "evaluate_model", "k") for overrides in OVERRIDES], None)


def cluster():
    return OmegaConf.to_container(OmegaConf.load(schema.config_dir() / "cluster" / "default.yaml"))


def test_a_task_is_what_was_submitted_whatever_is_written_later(tmp_path):
    setup = ['[ $# = 0 ] || echo "seen: $@"', "set -- of its own"]  # as a sourced activate reads and changes them
    text = scripts.script(JOB, sweep="s", folder=tmp_path, cluster={**cluster(), "setup": setup}, report=[])
    text = text.replace(f"{shlex.quote(sys.executable)} -m kdlab.run --point", r"printf '%s\n'")
    assert not list(tmp_path.iterdir())  # nothing beside the script can change it
    for number, overrides in enumerate(OVERRIDES):
        env = {"SLURM_ARRAY_TASK_ID": str(number), "HOME": "/h", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["bash"], input=text, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == overrides


def test_status_shows_no_line_of_an_earlier_submission(tmp_path, monkeypatch):
    monkeypatch.setattr(status.slurm, "queue", lambda jobs: {})
    monkeypatch.setattr(status.slurm, "killed", lambda jobs: {})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "students_7_0.log").write_text("kdlab: of another point\n")
    sweep = Submitted(tmp_path, tmp_path / "store", [], [JOB], {"students": "8"})
    assert [one.note for one in status.states(sweep)] == ["no log: it never started"] * 2


def test_status_tells_what_was_killed_from_what_has_failed(tmp_path, monkeypatch):
    """As the cluster's accounts have it; a controller's records are tested on a real one."""
    sacct = tmp_path / "bin" / "sacct"
    sacct.parent.mkdir()
    sacct.write_text("#!/bin/sh\necho '8_0|OUT_OF_MEMORY|0:125'\necho '8_1|FAILED|1:0'\necho '9|CANCELLED by 0|0:15'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", str(sacct.parent), prepend=":")
    monkeypatch.setattr(status.slurm, "queue", lambda jobs: {})
    (tmp_path / "logs").mkdir()
    for task in (0, 1):
        (tmp_path / "logs" / f"students_8_{task}.log").write_text("student:  40%\rstudent:  50%")
    sweep = Submitted(tmp_path, tmp_path / "store", [], [JOB], {"students": "8", "report": "9"})
    assert [(one.state, one.note) for one in status.states(sweep)] == [
        ("killed", "OUT_OF_MEMORY; student:  50%"),
        ("failed", "student:  50%"),
    ]


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


def budgeted_gb(capsys, *overrides):
    """Peak of a step by training, GB, as kdlab.budget prints it for the chosen strategy."""
    assert budget.main([*overrides]) == 0
    peaks, name = {}, ""
    for line in capsys.readouterr().out.splitlines():
        name = line.partition(":")[0] if re.match(r"\w+: [\d,]+ parameters", line) else name
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0].endswith(" *") and cells[-1] in ("yes", "no"):
            peaks[name] = float(cells[-2].replace(",", "")) / 1e3
    return peaks


def warned(capsys, *arguments):
    assert command.main(["submit", *arguments, "dry_run=true"]) == 0
    return [line for line in capsys.readouterr().err.splitlines() if "will not fit" in line]


def test_trainings_that_do_not_fit_a_gpu_are_a_line_a_job(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = ["+experiment=hybrid_wmt20", "strategy=ddp", "strategy.devices=8"]
    peaks = budgeted_gb(capsys, *run, "num_devices=8")
    assert peaks["baseline"] < peaks["student"] < 8 < peaks["teacher"]
    (line,) = warned(capsys, *run, "cluster.gpus=8", "cluster.gpu_memory_gb=8", "seed=1,2")
    assert "job teacher will not fit: teacher of hybrid_wmt20/" in line
    assert f"needs {peaks['teacher']:.1f} GB on a GPU, but cluster.gpu_memory_gb=8 (" in line
    two = warned(capsys, *run, "cluster.gpus=8", f"cluster.gpu_memory_gb={peaks['student'] - 0.1:.2f}", "seed=1,2")
    assert [line.split()[3] for line in two] == ["teacher", "students"]
    assert f"needs {peaks['student']:.1f} GB" in two[1] and "need too much: 2)" in two[1]  # of two seeds, not baselines
    assert not warned(capsys, *run, "cluster.gpus=8", f"cluster.gpu_memory_gb={peaks['teacher'] + 0.1:.2f}")


def test_trainings_on_a_cpu_are_held_to_main_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = ["recipe=train_only", "objective=nll", "student.d_model=2048", "student.d_ff=8192"]
    for strategy, processes in ((["strategy=single"], 1), (["strategy=ddp", "strategy.devices=2"], 2)):
        peak = budgeted_gb(capsys, *run, *strategy, f"num_devices={processes}")["student"]
        needed = processes * (peak + 0.485) * 1e9 / 2**30
        (line,) = warned(capsys, *run, *strategy, f"cluster.mem_gb={int(needed)}")
        assert f"needs {needed:.1f} GiB in {processes} processes, but cluster.mem_gb={int(needed)} (" in line
        assert not warned(capsys, *run, *strategy, f"cluster.mem_gb={int(needed) + 1}")
        assert not warned(capsys, *run, *strategy, "cluster.mem_gb=null")
