"""The store: keys, reuse, resuming after kill -9, waiting, and what a full disk leaves."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kdlab import files
from kdlab.artifacts import store as store_module
from kdlab.artifacts.attempts import Attempts
from kdlab.artifacts.stage import Step, canonical_json, key, needed, plan_keys
from kdlab.artifacts.store import Store
from kdlab.errors import UserError


def step(name, inputs=(), run=None, version=1, stage=None, **params):
    def write(out, inputs, params, local):
        (out / "result").write_text(name)
        (out / "scratch").mkdir(exist_ok=True)
        return {"inputs": sorted(inputs)}

    inputs = dict(inputs) if isinstance(inputs, dict) else {one: one for one in inputs}
    return Step(name, stage or f"make_{name}", version, params, inputs, run or write, {"device": "cpu"})


def chain(ran, **changed):
    """corpus -> teacher -> student -> evaluate, and evaluate_teacher beside it."""

    def run_of(name):
        def run(out, inputs, params, local):
            assert all((folder / "result").is_file() for folder in inputs.values())
            ran.append(name)
            (out / "result").write_text(name)
            return {}

        return run

    edges = {
        "corpus": [],
        "teacher": ["corpus"],
        "evaluate_teacher": ["corpus", "teacher"],
        "student": ["corpus", "teacher"],
        "evaluate": ["corpus", "student"],
    }
    return [step(name, inputs, run_of(name), **changed.get(name, {})) for name, inputs in edges.items()]


def test_key_is_a_function_of_stage_version_params_and_upstream_alone():
    one = step("a", lr=1.0, sizes=[1, 2])
    assert key(one, {"corpus": "0" * 12}) == "17e8dbccb8b3"  # a changed number here forgets every store in the world
    same = Step("other name", "make_a", 1, {"sizes": (1, 2.0), "lr": 1}, {}, print, {"device": "cuda"})
    assert key(same, {"corpus": "0" * 12}) == key(one, {"corpus": "0" * 12})
    different = [
        key(step("a", lr=1.1, sizes=[1, 2]), {"corpus": "0" * 12}),
        key(step("a", lr=1.0, sizes=[2, 1]), {"corpus": "0" * 12}),
        key(step("a", version=2, lr=1.0, sizes=[1, 2]), {"corpus": "0" * 12}),
        key(one, {"corpus": "1" * 12}),
        key(one, {"model": "0" * 12}),
        key(step("a", lr=True, sizes=[1, 2]), {"corpus": "0" * 12}),
    ]
    assert len({*different, key(one, {"corpus": "0" * 12})}) == 7
    with pytest.raises(ValueError):
        canonical_json({"lr": float("inf")})
    with pytest.raises(TypeError):
        canonical_json({"path": object()})


def test_plans_that_do_not_hang_together_are_refused():
    with pytest.raises(ValueError):
        plan_keys([step("b", ["a"]), step("a")])
    with pytest.raises(ValueError):
        plan_keys([step("a"), step("a")])
    assert [one.name for one in needed(chain([]), "student")] == ["corpus", "teacher", "student"]


def test_walk_runs_once_then_reuses_and_writes_a_manifest(tmp_path, capsys):
    ran, store = [], Store(tmp_path)
    first = store.walk(chain(ran))
    assert ran == ["corpus", "teacher", "evaluate_teacher", "student", "evaluate"]
    assert store.walk(chain(ran)) == first and len(ran) == 5
    assert "evaluate: reuse make_evaluate/" in capsys.readouterr().err
    manifest = files.read_json(first["student"] / "manifest.json")
    assert manifest["inputs"] == {"corpus": first["corpus"].name, "teacher": first["teacher"].name}
    assert manifest["key"] == first["student"].name and manifest["device"] == "cpu" and manifest["attempts"] == 1
    assert {"stage", "version", "params", "commit", "versions", "created", "seconds", "cpu_seconds"} <= set(manifest)
    assert sorted(path.name for path in first["student"].iterdir()) == ["manifest.json", "result"]
    assert [path.name for path in (tmp_path / "make_student").iterdir()] == [first["student"].name]  # no lock, no work


def test_only_what_is_needed_is_walked(tmp_path):
    ran, store = [], Store(tmp_path)
    folders = store.walk(chain(ran))
    for name in ("corpus", "teacher", "student"):
        folders[name].rename(tmp_path / name)
    ran.clear()
    assert set(store.walk(chain(ran))) == {"evaluate", "evaluate_teacher"} and ran == []
    assert [state for *_, state in store.plan(chain(ran))] == ["skip", "skip", "reuse", "skip", "reuse"]
    store.walk(chain(ran, evaluate={"beam": 2}))
    assert ran == ["corpus", "teacher", "student", "evaluate"]


def test_until_stops_and_a_typo_is_told(tmp_path):
    ran, store = [], Store(tmp_path)
    assert list(store.walk(chain(ran), until="teacher")) == ["corpus", "teacher"] == ran
    assert [state for *_, state in store.plan(chain(ran), "report")] == ["reuse", "reuse", "run", "run", "run"]
    with pytest.raises(UserError, match="did you mean 'teacher'"):
        store.walk(chain(ran), until="techer")


def test_two_steps_of_one_key_are_made_once(tmp_path):
    ran = []

    def run(out, inputs, params, local):
        ran.append(1)

    plan = [step("student", run=run, stage="train"), step("baseline", run=run, stage="train")]
    folders = Store(tmp_path).walk(plan)
    assert ran == [1] and folders["student"] == folders["baseline"]


@pytest.mark.parametrize("damage", ["none", "cut short", "of another key"])
def test_half_a_result_never_counts(tmp_path, damage):
    ran, store = [], Store(tmp_path)
    plan = chain(ran)[:1]
    folder = store.walk(plan)["corpus"]
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    if damage == "none":
        manifest.unlink()
    else:
        manifest.write_text(whole[:40] if damage == "cut short" else whole.replace(folder.name, "0" * 12))
    (folder / "precious").touch()
    assert store.state(plan[0], folder.name) == "run"
    assert store.walk(plan)["corpus"] == folder and ran == ["corpus"] * 2
    assert store.state(plan[0], folder.name) == "reuse" and not (folder / "precious").exists()
    assert len(list(folder.parent.glob("*.incomplete-*/precious"))) == 1  # moved aside, not deleted


def test_a_failed_step_is_kept_and_resumed_with_its_time(tmp_path):
    def run(out, inputs, params, local):
        scratch = out / "scratch"
        scratch.mkdir(exist_ok=True)
        done = len(list(scratch.iterdir()))
        (scratch / str(done)).touch()
        time.sleep(0.1)
        if done < 2:
            raise RuntimeError("stop")
        return {"chunks": done + 1}

    store, plan = Store(tmp_path), [step("label", run=run)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stop"):
            store.walk(plan)
        (work,) = (tmp_path / "make_label").glob("*.work-*")
        (work / ".attempts.json.0123abcd.tmp").touch()  # as a kill in files.write_text leaves it
    assert len(list((tmp_path / "make_label").glob("*.work-*"))) == 1
    folder = store.walk(plan)["label"]
    manifest = files.read_json(folder / "manifest.json")
    assert manifest["summary"] == {"chunks": 3} and manifest["attempts"] == 3
    assert 0.3 <= manifest["seconds"] < 3
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert list((tmp_path / "make_label").iterdir()) == [folder]


def test_killed_between_manifest_and_publishing_is_only_published(tmp_path, monkeypatch):
    ran, store = [], Store(tmp_path)
    monkeypatch.setattr(files, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.walk(chain(ran)[:1])
    monkeypatch.undo()
    folder = store.walk(chain(ran)[:1])["corpus"]
    assert ran == ["corpus"] and files.read_json(folder / "manifest.json")["attempts"] == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("writer failed: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_says_what_is_kept(tmp_path, error):
    def run(out, inputs, params, local):
        (out / "scratch").mkdir()
        raise error

    with pytest.raises(UserError, match=r"(?s)full.*label.*kept.*paths\.store") as caught:
        Store(tmp_path).walk([step("label", run=run)])
    assert caught.value.__cause__ is error
    assert len(list((tmp_path / "make_label").glob("*.work-*/scratch"))) == 1


def test_inputs_that_vanish_are_noticed(tmp_path):
    import shutil

    def run(out, inputs, params, local):
        shutil.rmtree(tmp_path / "make_corpus")

    plan = [step("corpus"), step("teacher", ["corpus"], run=run), step("student", ["corpus", "teacher"])]
    with pytest.raises(UserError, match="'student' needs the result of 'corpus'"):
        Store(tmp_path).walk(plan)


def test_waits_for_a_living_owner_and_takes_its_result(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store_module, "POLL_S", 0.02)
    ran, running, go_on = [], threading.Event(), threading.Event()

    def run(out, inputs, params, local):
        ran.append(1)
        running.set()
        assert go_on.wait(10)

    plan, found = [step("corpus", run=run)], []
    walkers = [threading.Thread(target=lambda: found.append(Store(tmp_path).walk(plan))) for _ in range(2)]
    walkers[0].start()
    assert running.wait(10)
    walkers[1].start()
    told, begun = "", time.monotonic()
    while "waiting" not in told:
        assert time.monotonic() - begun < 10
        told += capsys.readouterr().err
        time.sleep(0.01)
    go_on.set()
    for walker in walkers:
        walker.join()
    assert ran == [1] and found[0] == found[1]
    assert f"process {os.getpid()} on " in told


STAGE = """
import os, sys, time
from pathlib import Path
from kdlab.artifacts.stage import Step
from kdlab.artifacts.store import Store

def run(out, inputs, params, local):
    scratch = out / "scratch"
    scratch.mkdir(exist_ok=True)
    for number in range(params["chunks"]):
        if not (scratch / str(number)).exists():
            (scratch / str(number)).write_text(str(os.getpid()))
            print(number, flush=True)
            time.sleep(0.2)
    (out / "pids").write_text("".join((scratch / str(n)).read_text() + " " for n in range(params["chunks"])))
    return {}

Store(sys.argv[1]).walk([Step("label", "make", 1, {"chunks": 4}, {}, run)])
"""


def test_kill_nine_then_the_same_command_resumes(tmp_path):
    def start():
        return subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    first = start()
    assert [first.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert list(tmp_path.glob("make/*/manifest.json")) == []
    seconds = time.monotonic()
    rivals = [start(), start()]  # both find the dead one; together they do what is left, once
    printed = [rival.communicate()[0] for rival in rivals]
    assert sorted(printed) == ["", "3\n"] and [rival.returncode for rival in rivals] == [0, 0]
    assert time.monotonic() - seconds < 10
    (manifest,) = tmp_path.glob("make/*/manifest.json")
    pids = (manifest.parent / "pids").read_text().split()
    assert pids[:3] == [str(first.pid)] * 3 and pids[3] in {str(rival.pid) for rival in rivals}
    assert files.read_json(manifest)["attempts"] == 2
    assert list((tmp_path / "make").iterdir()) == [manifest.parent]


def test_who_lost_its_work_folder_makes_no_new_one(tmp_path):
    """The newest work folder is resumed and older ones are removed: an empty one would cost the work in the other."""
    attempts, work = Attempts(), tmp_path / "key.work-a"
    work.mkdir()
    attempts.begin(work)
    work.rename(tmp_path / "key.work-b")
    attempts.note()
    attempts.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["key.work-b"]


def test_whose_step_was_taken_over_is_told_so_whatever_it_stumbles_over(tmp_path, monkeypatch):
    def run(out, inputs, params, local):
        out.rename(out.with_name("theirs"))
        (out / "file").write_text("late")

    lost = type("Lost", (store_module.files.Lease,), {"lost": property(lambda self: True, lambda self, value: None)})
    monkeypatch.setattr(store_module.files, "Lease", lost)
    with pytest.raises(UserError, match="step 'corpus' was taken over by another process"):
        Store(tmp_path).walk([step("corpus", run=run)])
