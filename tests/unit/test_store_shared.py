"""Steps that many processes make together: who would wait helps, whoever dies, and the result is published once."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from kdlab import files
from kdlab.artifacts import store as store_module
from kdlab.artifacts.store import Store
from tests.unit.test_store import step

SHARED = """
import os, sys, time
from pathlib import Path
from kdlab import files
from kdlab.artifacts import store
from kdlab.artifacts.stage import Step

store.POLL_S = 0.01

def take(scratch, params):
    while len(list(scratch.glob("*.done"))) < params["pieces"]:
        for number in range(params["pieces"]):
            lease = files.Lease(scratch / f"lock{number}")
            if (scratch / f"{number}.done").exists() or lease.try_acquire() is not None:
                continue
            if not (scratch / f"{number}.done").exists():
                print(number, flush=True)
                while number >= 4 and not go.exists():
                    time.sleep(0.01)
                (scratch / f"{number}.part").write_text(str(os.getpid()))
                os.replace(scratch / f"{number}.part", scratch / f"{number}.done")
            lease.release(forget=True)
        time.sleep(0.01)

def run(out, inputs, params, local):
    print("owner", flush=True)
    take(out / "scratch", params)
    (out / "pids").write_text(" ".join((out / "scratch" / f"{n}.done").read_text() for n in range(params["pieces"])))
    return {"pieces": params["pieces"]}

def assist(scratch, inputs, params, local):
    print("helper", flush=True)
    try:
        take(scratch, params)
    except FileNotFoundError:
        if scratch.exists():
            raise

go, params = Path(sys.argv[1]) / "go", {"pieces": 12}
store.Store(sys.argv[1]).walk([Step("label", "make", 1, params, {}, run, assist=assist)])
"""


class Process:
    """A process that walks SHARED, and the lines that it has printed."""

    def __init__(self, root):
        command = [sys.executable, "-c", SHARED, str(root)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.pid = str(self._process.pid)

    def read(self, line):
        while (found := self._process.stdout.readline()) != line + "\n":
            assert found, f"ended without {line}"

    def end(self):
        self._process.communicate(timeout=30)
        return self._process.returncode

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        assert self.end() == -9


def published(root):
    """The pids that made the pieces; nothing but the result is left in the store."""
    (manifest,) = root.glob("make/*/manifest.json")
    assert list((root / "make").iterdir()) == [manifest.parent]
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["manifest.json", "pids"]
    return (manifest.parent / "pids").read_text().split()


def owner_and_helper(root):
    """Two processes: the first has made four pieces and works on the fifth, the second on the sixth."""
    owner = Process(root)
    owner.read("owner")
    owner.read("4")
    helper = Process(root)
    helper.read("helper")
    helper.read("5")
    return owner, helper


def test_who_would_wait_takes_a_part_and_takes_over_from_a_dead_owner(tmp_path):
    owner, helper = owner_and_helper(tmp_path)
    (shared,) = tmp_path.glob("make/*.shared")
    (work,) = tmp_path.glob("make/*.work-*")
    assert (work / "scratch").resolve() == shared.resolve()
    owner.kill()
    third = Process(tmp_path)  # the owner now, beside a helper that is at work in the same place
    third.read("owner")
    third.read("4")
    (tmp_path / "go").touch()
    assert (helper.end(), third.end()) == (0, 0)
    pids = published(tmp_path)
    assert pids[:6] == [owner.pid] * 4 + [third.pid, helper.pid] and set(pids[6:]) <= {third.pid, helper.pid}


def test_a_helper_becomes_the_owner_when_that_dies(tmp_path):
    owner, helper = owner_and_helper(tmp_path)
    owner.kill()
    (tmp_path / "go").touch()
    helper.read("owner")
    assert helper.end() == 0
    assert published(tmp_path) == [owner.pid] * 4 + [helper.pid] * 8


def test_killed_processes_cost_the_pieces_that_they_worked_on(tmp_path):
    for process in reversed(owner_and_helper(tmp_path)):
        process.kill()
    (tmp_path / "go").touch()
    last = Process(tmp_path)
    assert last.end() == 0
    assert published(tmp_path)[4:] == [last.pid] * 8 and published(tmp_path)[3] != last.pid


@pytest.mark.parametrize("moment", ["manifest", "moved away", "publish"])
def test_an_owner_killed_while_it_publishes_loses_nothing(tmp_path, monkeypatch, moment):
    ran = []

    def run(out, inputs, params, local):
        ran.append(1)
        (out / "scratch" / "piece").touch()
        (out / "result").touch()

    plan = [replace(step("label", run=run), assist=lambda *_: ran.append("helped"))]
    owner, name = {
        "manifest": (files, "write_json"),
        "moved away": (store_module.shutil, "rmtree"),
        "publish": (files, "publish"),
    }[moment]

    def killed(path, *_, **__):
        if path.name != "scratch":  # it is removed earlier
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(store_module.Attempts, "note", lambda self: None)
        Store(tmp_path).walk(plan)
    monkeypatch.undo()
    assert (len(list(tmp_path.glob("*/*.shared/piece"))) == 1) == (moment == "manifest")
    folder = Store(tmp_path).walk(plan)["label"]
    assert ran == [1] * (2 if moment == "manifest" else 1)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "result"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_step_that_fails_for_its_owner_keeps_what_is_shared(tmp_path):
    def run(out, inputs, params, local):
        with open(out / "scratch" / "pieces", "a") as file:
            file.write("x")
        raise RuntimeError("stop")

    plan = [replace(step("label", run=run), assist=lambda *_: None)]
    for attempt in (1, 2):
        with pytest.raises(RuntimeError, match="stop"):
            Store(tmp_path).walk(plan)
        (pieces,) = tmp_path.glob("make_label/*.shared/pieces")
        assert pieces.read_text() == "x" * attempt
