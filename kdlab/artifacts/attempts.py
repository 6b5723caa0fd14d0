"""The time that a step has cost, over all its attempts: a killed run's seconds are not forgotten."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from kdlab import files, runtime

ATTEMPTS = "attempts.json"


class Attempts:
    """Wall and CPU seconds of earlier attempts (from the work folder) and of this one.

    `note` is called from the heartbeat of the lease, so that a kill -9 loses at most the seconds since the last beat.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._file: Path | None = None
        self._earlier: list[dict[str, float]] = []
        self._wall = self._cpu = 0.0

    def begin(self, work: Path) -> None:
        """Reads what earlier attempts in this work folder took and starts the clock."""
        file = work / ATTEMPTS
        with contextlib.suppress(OSError, ValueError):
            self._earlier = list(files.read_json(file))
        self._wall, self._cpu = time.monotonic(), runtime.cpu_seconds()
        self._file = file
        self.note()

    def note(self) -> None:
        """Writes the seconds so far."""
        with self._guard:
            if self._file is not None and self._file.parent.is_dir():  # else another process took it over: see Store
                files.write_json(self._file, [*self._earlier, self._now()])

    def stop(self) -> None:
        """Ends a failed attempt: a last note where the disk allows it."""
        with contextlib.suppress(OSError):
            self.note()
        with self._guard:
            self._file = None

    def finish(self) -> dict[str, float]:
        """Ends the last attempt, removes the notes and returns `seconds`, `cpu_seconds` and `attempts`."""
        with self._guard:
            if self._file is not None:
                self._file.unlink(missing_ok=True)
            self._file = None
            all_of_them = [*self._earlier, self._now()]
        total = {unit: round(sum(one[unit] for one in all_of_them), 3) for unit in ("seconds", "cpu_seconds")}
        return {**total, "attempts": len(all_of_them)}

    def _now(self) -> dict[str, float]:
        return {
            "seconds": round(time.monotonic() - self._wall, 3),
            "cpu_seconds": round(runtime.cpu_seconds() - self._cpu, 3),
        }
