"""Files that are whole or absent, and leases that die with their owner; no torch, imports nothing of kdlab.

Everything is written beside its place and renamed into it, so that a reader never sees half a file. A lease saves
double work; correctness never hangs on it, because a result is published by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEAT_S = 10.0  # how often a living owner touches its lock
DEAD_AFTER_S = 60.0  # a lock of another machine is dead after this long without a beat
SETTLED_NS = 2_000_000_000  # a file changed within the last 2 s may change again without its time moving on
CACHE_FROM_BYTES = 1 << 20  # a smaller file is hashed faster than it is looked up

_hashes: ContextVar[Path | None] = ContextVar("hashes", default=None)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole: the old content or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, text)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as indented JSON, whole; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises: FileNotFoundError, json.JSONDecodeError."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync(folder: Path) -> None:
    """Puts the content of a folder on disk: after it, what is written later cannot outlive what it speaks of."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def put_in_place(path: Path, target: Path) -> None:
    """Renames a finished file; on disk before it is seen there, and the name on disk when this returns."""
    _sync(path)
    os.replace(path, target)
    _sync(target.parent)


def publish(folder: Path, target: Path) -> bool:
    """Moves a finished and synced folder to its place by one rename.

    False when the target is there already: the folder is dropped, the first one to publish wins.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(folder, target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(folder)
        return False
    _sync(target.parent)
    return True


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 hex; inside `remembered_hashes` a big unchanged file is not read again."""
    path = Path(path)
    cache, before = _hashes.get(), path.stat()
    known = _read_hashes(cache) if cache and before.st_size >= CACHE_FROM_BYTES else {}
    name, stamp = str(path.resolve()), [before.st_size, before.st_mtime_ns]
    if known.get(name, [None])[:-1] == stamp:
        return str(known[name][-1])
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    after = path.stat()
    settled = [after.st_size, after.st_mtime_ns] == stamp and time.time_ns() - after.st_mtime_ns > SETTLED_NS
    if cache and settled and before.st_size >= CACHE_FROM_BYTES:
        with contextlib.suppress(OSError):  # only a saving: a read-only or full store must not stop a dry run
            write_json(cache, {**_read_hashes(cache), name: [*stamp, digest.hexdigest()]})
    return digest.hexdigest()


@contextlib.contextmanager
def remembered_hashes(cache: Path) -> Iterator[None]:
    """Lets `sha256_file` trust the hashes that `cache` (a JSON file) holds by path, size and time of change."""
    token = _hashes.set(cache)
    try:
        yield
    finally:
        _hashes.reset(token)


def _read_hashes(cache: Path) -> dict[str, list[Any]]:
    try:
        found = read_json(cache)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no fsync of a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Owner:
    """Who holds a lease: a process, told apart from a later one of the same number by its start time."""

    id: str
    host: str
    pid: int
    started: int | None  # clock ticks after boot, from /proc; None where there is no /proc
    pid_space: str | None  # boot and process namespace within which `pid` means something

    @classmethod
    def this_process(cls) -> Owner:
        """A new owner id for the process that asks."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex[:12], socket.gethostname(), pid, _start_time(pid), _pid_space())

    def alive(self, silent_s: float) -> bool:
        """Whether the owner still works, given how long its lock has been silent.

        The process table decides where we can see it (also about a process that was suspended for hours), the
        heartbeat elsewhere.
        """
        if self.pid_space is not None and self.pid_space == _pid_space():
            return self.started is not None and _start_time(self.pid) == self.started
        if self.pid_space is None and self.host == socket.gethostname() and not _pid_exists(self.pid):
            return False
        return silent_s < DEAD_AFTER_S


class Lease:
    """The right to do one piece of work, held by a numbered lock file that its owner touches.

    The files are `<path>.<number>`; the highest number is the lock and is never reused, so a dead one is taken over by
    creating the next number exclusively: of two processes that try, one wins, without a moment in which both hold it.
    `on_beat` is called from the heartbeat thread at every beat. The folder must exist, and nothing here makes it: when
    it is removed, the lease is lost.
    """

    def __init__(self, path: Path, *, beat_s: float = BEAT_S, on_beat: Callable[[], None] | None = None):
        self.path, self.owner, self.lost = path, Owner.this_process(), False
        self._beat_s, self._on_beat = beat_s, on_beat
        self._file: Path | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def try_acquire(self) -> Owner | None:
        """None when the lease is ours now, else its living owner. Raises: FileNotFoundError without its folder."""
        while True:
            number, newest = self._newest()
            if newest is not None:
                owner = self._living_owner(newest)
                if owner is not None:
                    return owner
            mine = self.path.with_name(f"{self.path.name}.{number + 1}")
            try:
                descriptor = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                continue  # another process was faster: look who it is
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.owner)))
            if self._newest()[1] != mine:  # our view was old: that number had been used and cleared away
                mine.unlink(missing_ok=True)
                continue
            self._file = mine
            self._clear(below=number + 1)
            self._stop.clear()
            self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
            self._thread.start()
            return None

    def holder(self) -> Owner | None:
        """Its living owner, without a try to become it. Raises: FileNotFoundError without its folder."""
        newest = self._newest()[1]
        return None if newest is None else self._living_owner(newest)

    def release(self, *, forget: bool = False) -> None:
        """Gives the lease back; `forget` also removes the lock file.

        Forgetting frees its number, so do it only once the work is published: whoever then acquires sees the result.
        """
        if self._file is None or self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):  # on a full disk the lock dies with this process instead
                _replace(self._file, "released\n")
                if forget:
                    self._clear(below=int(self._file.suffix[1:]) + 1)
        self._file = None

    def _newest(self) -> tuple[int, Path | None]:
        # A file that is being replaced (`.name.1.<id>.tmp`) does not begin with our name and is passed over.
        prefix = self.path.name + "."
        names = [name for name in os.listdir(self.path.parent) if name.startswith(prefix)]
        numbers = [int(name[len(prefix) :]) for name in names if name[len(prefix) :].isdigit()]
        return (max(numbers), self.path.with_name(f"{prefix}{max(numbers)}")) if numbers else (-1, None)

    def _living_owner(self, lock: Path) -> Owner | None:
        try:
            text, silent_s = lock.read_text(encoding="utf-8"), self._silence(lock)
        except FileNotFoundError:
            return None  # released and cleared between the listing and here
        if text == "released\n":
            return None
        try:
            owner = Owner(**json.loads(text))
        except (ValueError, TypeError):  # created and not yet written: its owner is at work, or died that moment
            return Owner("?", "unknown", 0, None, None) if silent_s < min(5.0, DEAD_AFTER_S) else None
        return owner if owner.alive(silent_s) else None

    def _silence(self, lock: Path) -> float:
        # Both times come from the file system, so that the clocks of two machines need not agree.
        probe = self.path.with_name(f".{self.path.name}.{self.owner.id}.probe")
        probe.touch()
        try:
            return probe.stat().st_mtime - lock.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _clear(self, below: int) -> None:
        prefix = self.path.name + "."
        for name in os.listdir(self.path.parent):
            if name.startswith(prefix) and name[len(prefix) :].isdigit() and int(name[len(prefix) :]) < below:
                self.path.with_name(name).unlink(missing_ok=True)

    def _beat(self) -> None:
        file = self._file
        while file is not None and not self._stop.wait(self._beat_s):
            try:
                os.utime(file)
                self.lost = self._newest()[1] != file
            except FileNotFoundError:
                self.lost = True
            except OSError:
                continue  # a file system that stumbles for a moment
            if self.lost:
                return
            if self._on_beat is not None:
                with contextlib.suppress(Exception):  # a note that fails must not end the heartbeat
                    self._on_beat()


def _start_time(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie was killed and only waits to be counted


def _pid_space() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
