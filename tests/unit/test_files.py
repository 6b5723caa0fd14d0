"""Atomic files and leases: half a file is never seen, one of many takes a dead lock over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdlab import files

HOLD = """
import sys, time
from pathlib import Path
from kdlab import files
lease = files.Lease(Path(sys.argv[1]), beat_s=0.05)
assert lease.try_acquire() is None
print("held", flush=True)
time.sleep(60)
"""

RACE = """
import sys, time
from pathlib import Path
from kdlab import files
lock, start = Path(sys.argv[1]), float(sys.argv[2])
lease = files.Lease(lock)
while time.time() < start:
    pass
print("won" if lease.try_acquire() is None else "lost", flush=True)
sys.stdin.read()
"""


def spawn(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def killed_holder(lock):
    """A process that held the lease and was killed with -9; not yet waited for, so it is a zombie."""
    holder = spawn(HOLD, lock)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_write_leaves_the_old_file_and_no_litter_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"a": "ä", "b": [1, 2.5]})
    assert files.read_json(path) == {"a": "ä", "b": [1, 2.5]}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": "new"})
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path)["a"] == "ä"
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_publish_first_one_wins(tmp_path):
    first, second, target = tmp_path / "one", tmp_path / "two", tmp_path / "there" / "result"
    for folder in (first, second):
        folder.mkdir()
        (folder / "who").write_text(folder.name)
    assert files.publish(first, target) is True
    assert files.publish(second, target) is False
    assert (target / "who").read_text() == "one"
    assert not first.exists() and not second.exists()


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    big, cache = tmp_path / "big", tmp_path / "store" / "hashes.json"
    big.write_bytes(b"x" * files.CACHE_FROM_BYTES)
    os.utime(big, (1e9, 1e9))
    with files.remembered_hashes(cache):
        digest = files.sha256_file(big)
        monkeypatch.setattr(files.hashlib, "sha256", None)  # reading it again would fail now
        assert files.sha256_file(big) == digest
        os.utime(big, (1e9, 1e9 + 1))
        with pytest.raises(TypeError):
            files.sha256_file(big)
    with pytest.raises(TypeError):  # outside, nothing is taken on trust
        files.sha256_file(big)


def test_a_fresh_file_is_not_remembered(tmp_path):
    """Its time of change may not move on when it is changed again within the same tick."""
    big, cache = tmp_path / "big", tmp_path / "hashes.json"
    big.write_bytes(b"x" * files.CACHE_FROM_BYTES)
    with files.remembered_hashes(cache):
        files.sha256_file(big)
    assert not cache.exists()


def test_lease_is_exclusive_and_leaves_nothing_when_forgotten(tmp_path):
    first, second = files.Lease(tmp_path / "lock"), files.Lease(tmp_path / "lock")
    assert first.try_acquire() is None
    assert second.try_acquire() == first.owner
    first.release()
    assert second.try_acquire() is None
    second.release(forget=True)
    assert list(tmp_path.iterdir()) == []


def test_dead_process_is_replaced_at_once(tmp_path):
    holder = killed_holder(tmp_path / "lock")
    lease = files.Lease(tmp_path / "lock")
    owner = lease.try_acquire()
    assert owner is not None and owner.pid == holder.pid
    holder.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    while lease.try_acquire() is not None:
        assert time.monotonic() - begun < 5  # not the 60 s of a silent heartbeat
    lease.release()
    holder.communicate()


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path):
    lease = files.Lease(tmp_path / "lock")
    lease.try_acquire()
    lock = tmp_path / "lock.0"
    owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "started": owner["started"] - 1}))
    other = files.Lease(tmp_path / "lock")
    assert other.try_acquire() is None
    other.release()


def test_another_machine_is_judged_by_its_heartbeat(tmp_path):
    elsewhere = {"id": "x", "host": "elsewhere", "pid": os.getpid(), "started": 1, "pid_space": "another boot"}
    lock = tmp_path / "lock.7"
    lock.write_text(json.dumps(elsewhere))
    lease = files.Lease(tmp_path / "lock")
    found = lease.try_acquire()
    assert found is not None and found.host == "elsewhere"
    old = time.time() - files.DEAD_AFTER_S - 5
    os.utime(lock, (old, old))
    assert lease.try_acquire() is None
    assert (tmp_path / "lock.8").exists()
    lease.release()


def test_heartbeat_touches_the_lock_and_notices_a_loss(tmp_path):
    beats = []
    lease = files.Lease(tmp_path / "lock", beat_s=0.02, on_beat=lambda: beats.append(1))
    lease.try_acquire()
    os.utime(tmp_path / "lock.0", (1, 1))
    until(lambda: beats and (tmp_path / "lock.0").stat().st_mtime > 1e9)
    assert lease.lost is False
    (tmp_path / "lock.1").write_text("released\n")
    until(lambda: lease.lost)
    lease.release(forget=True)
    assert (tmp_path / "lock.1").exists()  # another owner's lock is not ours to remove


@pytest.mark.parametrize("left_behind", ["nothing", "dead owner"])
def test_of_many_processes_exactly_one_takes_over(tmp_path, left_behind):
    for number in range(3):
        lock = tmp_path / f"{left_behind[:4]}{number}"
        if left_behind == "dead owner":
            holder = killed_holder(lock)
            holder.kill()
            holder.communicate()
        start = time.time() + 0.7
        racers = [spawn(RACE, lock, start) for _ in range(4)]
        assert sorted(racer.stdout.readline() for racer in racers) == ["lost\n"] * 3 + ["won\n"]
        for racer in racers:
            racer.communicate()


def until(condition, timeout_s=5.0):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s
        time.sleep(0.01)


def test_files_and_errors_are_free_of_heavy_imports():
    code = "import sys, kdlab.files, kdlab.errors, kdlab.runtime; print('torch' in sys.modules, 'tqdm' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=True)
    assert found.stdout == "False False\n"
