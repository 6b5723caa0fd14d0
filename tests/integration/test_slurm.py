"""Sweeps on a real SLURM: shared steps once, a failure that stays one cell, requeueing with exact resuming."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdlab.sweep import slurm as slurm_commands
from tests import slurm

TINY = [
    *("+debug=small", "baseline=false", "data.train.0.num_lines=800", "max_steps=4", "teacher.max_steps=4"),
    *("data.valid.num_lines=20", "data.tests.toy.num_lines=20"),
    *("trainer.val_every=4", "cluster.cpus=1", "cluster.mem_gb=1", "cluster.label_tasks=2"),
]
ALONE = ("recipe=train_only", "objective=nll")
LONGER = ("max_steps=60", "trainer.val_every=60", "trainer.checkpoint_every=4")
PATIENCE_S = 600  # for a job and for a command: how long they take on a busy machine is nothing to test


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    lacking = slurm.missing()
    if lacking:
        reason = f"no SLURM here: {', '.join(lacking)} missing (apt-get install slurm-wlm)"
        if os.environ.get("KDLAB_NEEDS_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as env:
        root = Path(__file__).parents[2]
        yield {**env, "PYTHONPATH": str(root)}


def kdlab(environment, folder, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def call(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def wait(environment, done, shown=lambda: ""):
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, call(environment, "squeue") + shown()
        time.sleep(0.5)


def state(record):
    """State and number of restarts in a job's record; COMPLETING goes before all others."""
    return re.search(r"JobState=(\w+)", record)[1], int(re.search(r"Restarts=(\d+)", record)[1])


def test_a_grid_shares_its_teacher_and_a_failed_point_is_one_cell(environment, tmp_path):
    grid = ["seed=1,2", "optim.lr=0.005,1e30", *TINY]
    shown = kdlab(environment, tmp_path, "kdlab.sweep", "submit", *grid)
    assert "4 students, 1 teachers: 5 runs" in shown
    folder = tmp_path / re.search(r"scripts: (\S+)", shown)[1]
    wait(environment, lambda: not call(environment, "squeue", "--noheader"))

    table = kdlab(environment, tmp_path, "kdlab.sweep", "status", str(folder))
    students = [line for line in table.splitlines() if line.startswith("students ")]
    assert sorted(line.split()[2] for line in students) == ["done", "done", "failed", "failed"], table
    assert all("is not finite" in line for line in students if " failed " in line), table  # its last words
    assert len(list((tmp_path / "store/train_model").glob("*/manifest.json"))) == 3  # one teacher, two students
    ids = json.loads((folder / "sweep.json").read_text())["ids"]
    ended = call(environment, "scontrol", "show", "job", ids["students"])
    codes = dict(re.findall(r"ArrayTaskId=(\d+).*?ExitCode=(\d+):", ended, re.DOTALL))
    assert sorted(codes.values()) == ["0", "0", "1", "1"], ended

    again = kdlab(environment, tmp_path, "kdlab.sweep", "submit", *grid, "dry_run=true")
    assert "job students: 2 tasks" in again and "job teacher" not in again  # only what failed is submitted again


def test_usr1_requeues_and_the_weights_are_those_of_an_uninterrupted_run(environment, tmp_path):
    run = [*ALONE, *TINY, *LONGER]
    run = [text for text in run if not text.startswith(("baseline", "teacher", "max_steps=4", "trainer.val_every=4"))]
    shown = kdlab(environment, tmp_path, "kdlab.sweep", "submit", *run)
    folder = tmp_path / re.search(r"scripts: (\S+)", shown)[1]
    job = json.loads((folder / "sweep.json").read_text())["ids"]["students"]
    kdlab(environment, tmp_path, "kdlab.sweep", "submit", *run, code=1)  # it is in the queue already
    interrupt_and_finish(environment, tmp_path / "store", f"{job}_0", folder / "logs" / f"students_{job}_0.log")

    whole = [text for text in run if not text.startswith("cluster")]
    kdlab(environment, tmp_path, "kdlab.run", *whole, "until=student", "paths.store=whole")
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("*/train_model/*/weights.safetensors"))]
    assert len(weights) == 2 and weights[0] == weights[1]


def interrupt_and_finish(environment, store, job, log):
    """Tells a job's script to leave once its training has a checkpoint, and sees it start again and end."""

    def record():
        return call(environment, "scontrol", "show", "job", job)

    def shown():
        return f"{record()}\n{log.read_text() if log.exists() else 'no log'}"

    wait(environment, lambda: any((store / "train_model").rglob("last.ckpt")), shown)
    call(environment, "scancel", "--batch", "--signal=USR1", job)
    wait(environment, lambda: state(record()) == ("PENDING", 1), shown)
    # SLURM itself waits for two minutes. One second at least it must: slurmd refuses what it is sent in the second in
    # which it ended the first start ("Job credential revoked"), and the job has FAILED without a line in its log.
    call(environment, "scontrol", "update", f"JobId={job}", "StartTime=now+2")
    wait(environment, lambda: state(record())[0] not in ("PENDING", "RUNNING", "COMPLETING"), shown)
    assert state(record()) == ("COMPLETED", 1), shown()
    assert "resuming what an earlier run left" in log.read_text(), shown()


def test_two_nodes_train_by_srun_and_the_weights_are_those_of_one_node(environment, tmp_path):
    """With the template of slurm/, interrupted; on one node torchrun starts the two ranks, and nothing interrupts."""
    template = (Path(__file__).parents[2] / "slurm/several_nodes.sbatch").read_text()
    script = template.replace("8 * SLURM_JOB_NUM_NODES", "SLURM_JOB_NUM_NODES").replace("=cuda", "=cpu")
    assert template.count("8 * SLURM_JOB_NUM_NODES") == template.count("=cuda") == 1
    (tmp_path / "two.sbatch").write_text(script)
    run = [*ALONE, *TINY, *LONGER, "strategy=ddp", "until=student"]
    run = [text for text in run if not text.startswith(("baseline", "teacher", "cluster", "max_steps=4"))]
    run.remove("trainer.val_every=4")
    small = ("--gres=gpu:2", "--cpus-per-task=1", "--mem=1G", f"--output={tmp_path}/log", f"--chdir={tmp_path}")
    environment = {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    job = call(environment, "sbatch", "--parsable", *small, str(tmp_path / "two.sbatch"), *run).strip()
    interrupt_and_finish(environment, tmp_path / "store", job, tmp_path / "log")

    kdlab(environment, tmp_path, "kdlab.run", *run, "paths.store=one_node")
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("*/train_model/*/weights.safetensors"))]
    assert len(weights) == 2 and weights[0] == weights[1]

    find = "from kdlab.strategies import slurm; print(slurm.first_host('n[2-4,7]'))"  # here MASTER_ADDR says it
    assert call(environment, sys.executable, "-c", find) == "n2\n"


def test_the_cluster_takes_every_script_and_two_gpus(environment, tmp_path):
    asked = ["cluster.cpus=1", "cluster.mem_gb=1", "cluster.gpus=2", "dry_run=true"]
    shown = kdlab(environment, tmp_path, "kdlab.sweep", "submit", "sweep=seq_interpolation_wmt20", *asked)
    assert "8 students, 1 teachers: 9 runs" in shown
    scripts = sorted((tmp_path / "runs/.sweeps/seq_interpolation_wmt20").glob("*.sbatch"))
    assert len(scripts) >= 4
    for script in scripts:
        call(environment, "sbatch", "--test-only", str(script))
    assert "--gres=gpu:2" in (scripts[0].parent / "students.sbatch").read_text()


def test_the_templates_are_scripts_that_slurm_takes(environment):
    templates = sorted((Path(__file__).parents[2] / "slurm").glob("*.sbatch"))
    assert len(templates) == 4
    for template in templates:
        call(environment, "bash", "-n", str(template))
        small = ("--gres=gpu:2", "--cpus-per-task=1", "--mem=1G")
        call(environment, "sbatch", "--test-only", *small, str(template))


def test_a_request_that_the_cluster_refuses_is_one_message(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kdlab.sweep", "submit", *TINY, "cluster.gpus=3"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1 and "Requested node configuration is not available" in done.stderr
    assert "Traceback" not in done.stderr


def test_joblib_and_submitit_give_what_one_process_gives(environment, tmp_path):
    grid = ["-m", "recipe=train_only", "objective=nll", "seed=1,2", *TINY, "trainer.log_every=2"]
    grid = [text for text in grid if not text.startswith(("baseline", "teacher"))]
    launchers = {
        "alone": [],
        "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        "slurm": ["hydra/launcher=slurm"],
    }
    found = {}
    for name, launcher in launchers.items():
        kdlab(environment, tmp_path, "kdlab.run", *grid, *launcher, f"paths.store={name}", f"paths.runs={name}/runs")
        weights = sorted((tmp_path / name).glob("train_model/*/weights.safetensors"))
        scores = sorted((tmp_path / name).glob("evaluate_model/*/*.hyp.txt"))
        found[name] = [(path.parent.name, path.read_bytes()) for path in (*weights, *scores)]
    assert len(found["alone"]) == 4
    assert found["alone"] == found["joblib"] == found["slurm"]


def test_the_controller_tells_how_a_task_was_killed(environment, tmp_path, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, environment[name])
    script = tmp_path / "array.sbatch"
    script.write_text(
        "#!/bin/bash\n#SBATCH --array=0-4\n#SBATCH --mem=100M\ncase $SLURM_ARRAY_TASK_ID in\n"
        "0) exit 0;;\n1) exit 1;;\n2) kill -KILL $$;;\n3) sleep 60 & kill -KILL $!; wait $!;;\n4) sleep 600;;\nesac\n"
    )
    job = call(environment, "sbatch", "--parsable", f"--output={tmp_path}/log", str(script)).strip()
    wait(environment, lambda: list(slurm_commands.queue([job]).values()) == ["RUNNING"])
    call(environment, "scancel", f"{job}_4")
    wait(environment, lambda: not slurm_commands.queue([job]))
    assert slurm_commands.killed([job]) == {f"{job}_2": "SIGKILL", f"{job}_3": "SIGKILL", f"{job}_4": "CANCELLED"}
