"""Points as processes of this machine, some at a time: started, gathered when they end, told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FrameType

from kdlab import runtime
from kdlab.artifacts.store import Store
from kdlab.errors import UserError
from kdlab.report import results
from kdlab.report.update import add_ended
from kdlab.sweep import bill, status
from kdlab.sweep.cell import Cell
from kdlab.sweep.cost import Place

POLL_S = 0.2
PATIENCE_S = 300.0  # what a point that was told to stop may take to save: a validation with long translations
STOPPED = 130


@dataclass(frozen=True)
class Places:
    """Folders: of artefacts, of runs, of the experiments that get rows, of the logs."""

    store: Path
    runs: Path
    experiments: Path
    logs: Path

    def results(self, cell: Cell) -> Path:
        """The table that gets a point's rows."""
        return self.experiments / cell.experiment / "results.csv"

    def log(self, cell: Cell) -> Path:
        """All that a point has said, in every attempt."""
        return self.logs / f"{cell.point.folder}.log"


@dataclass
class Child:
    """A point under way."""

    cell: Cell
    process: subprocess.Popen[bytes]
    makes: set[Place]


class Runner:
    """Runs cells; `hours` are the estimates of what is missing, `parallel` how many devices compute at a time."""

    def __init__(self, cells: Sequence[Cell], hours: dict[Place, float], places: Places, workers: int, parallel: int):
        self.pending = sorted(cells, key=lambda cell: cell.seed)
        shared = set.intersection(*(set(cell.point.overrides) for cell in cells))
        self.names = {
            cell.point.folder: " ".join([cell.experiment, *(o for o in cell.point.overrides if o not in shared)])
            for cell in cells
        }
        self.total, self.workers, self.parallel = len(cells), workers, parallel
        self.hours, self.all_hours = dict(hours), sum(hours.values())
        self.places, self.store = places, Store(places.store)
        self.children: list[Child] = []
        self.failed: list[Cell] = []
        self.touched: dict[str, Path] = {}  # experiments that have got rows
        self.ended = 0
        self.begun, self.cpu = time.monotonic(), runtime.cpu_seconds()

    def run(self, again: str) -> int:
        """Works until nothing is left; returns the exit code. `again`: the command that goes on after a stop."""
        with _told() as told:
            try:
                while (self.pending or self.children) and not told:
                    self._reap()
                    while self.pending and len(self.children) < self.workers and not told:
                        self._start(self._next())
                    time.sleep(POLL_S)
                if told:
                    self._stop(told)
            finally:
                for child in self.children:  # none, unless something went wrong here
                    _end(child)
        if told:
            runtime.say(f"stopped, {self._progress()}; to go on: {again}")
            return STOPPED
        reported = [self._report(folder) for folder in self.touched.values()]
        for cell in self.failed:
            runtime.say(f"failed: {self._name(cell)}, see {self.places.log(cell)}")
        return int(bool(self.failed) or not all(reported))

    def _next(self) -> Cell:
        """The point to start: one whose steps nobody is making; else one that waits for nobody but who trains its
        student alone; the lowest seed first."""
        made = {place for child in self.children for place in child.makes}
        is_taken = cache(lambda place: place in made or self.store.is_making(*place))
        ranks: dict[tuple[bool, int, bool], Cell] = {}
        for cell in self.pending:
            taken = [step for place, step in cell.missing(self.store).items() if is_taken(place)]
            others = any(step.inputs.get("model", step.name) != "baseline" for step in taken)
            ranks.setdefault((others, cell.seed, bool(taken)), cell)
            if not taken:
                break
        cell = ranks[min(ranks)]
        self.pending.remove(cell)
        return cell

    def _start(self, cell: Cell) -> None:
        with contextlib.suppress(UserError):  # a table that cannot be read: said when its rows are gathered
            if cell.is_done(results.finished(self.places.results(cell))):  # by another runner on this folder
                self._count(cell, "there already")
                return
        log = self.places.log(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "kdlab.run", "--point", *cell.point.overrides],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the runner, which tells the points
                preexec_fn=partial(runtime.end_with_parent, signal.SIGTERM),
            )
        self.children.append(Child(cell, process, set(cell.missing(self.store))))

    def _reap(self) -> None:
        """Gathers the rows of points that have ended."""
        for child in [child for child in self.children if child.process.poll() is not None]:
            self.children.remove(child)
            cell, code = child.cell, child.process.returncode
            if (self.places.runs / cell.point.folder / "run.json").exists():  # else it never began
                code = self._gather(cell) or code
            if code:
                self.failed.append(cell)
                said = status.last_line(self.places.log(cell))
                self._count(cell, f"failed ({'signal' if code < 0 else 'exit code'} {abs(code)}): {said}")
            else:
                self._count(cell, "done")

    def _gather(self, cell: Cell) -> int:
        """1 where its rows cannot be written; the result stays in the store, and the same command gathers it."""
        folder = self.places.results(cell).parent
        try:
            add_ended(folder, self.places.runs / cell.experiment)
        except (UserError, OSError) as error:
            runtime.say(f"the rows of {self._name(cell)} are not in {folder}: {error}")
            return 1
        self.touched[cell.experiment] = folder
        return 0

    def _count(self, cell: Cell, ended: str) -> None:
        self.ended += 1
        left = [*self.pending, *(child.cell for child in self.children)]
        needed = {place for one in left for place in one.missing(self.store)}
        self.hours = {place: hours for place, hours in self.hours.items() if place in needed}
        runtime.say(f"{self._name(cell)}: {ended}; {self._progress()}")

    def _name(self, cell: Cell) -> str:
        """A point by what tells it from the others."""
        return self.names[cell.point.folder]

    def _progress(self) -> str:
        spent, left = (runtime.cpu_seconds() - self.cpu) / 3600, sum(self.hours.values())
        made = self.all_hours - left
        elapsed = (time.monotonic() - self.begun) / 3600
        clock = elapsed * left / made if made > 0 else left / self.parallel
        return f"{self.ended}/{self.total} points, {spent:.3g} CPU-hours spent, about {bill.duration(clock)} left"

    def _stop(self, told: list[int]) -> None:
        """Tells the points to save and leave; those that do not, or when told once more, are ended."""
        runtime.say(f"told to stop: {len(self.children)} points save what they have; once more ends them at once")
        for child in self.children:
            child.process.send_signal(signal.SIGTERM)  # it tells its own processes
        until = time.monotonic() + PATIENCE_S
        while any(child.process.poll() is None for child in self.children):
            if time.monotonic() > until or len(told) > 1:
                break
            time.sleep(POLL_S)
        for child in self.children:
            _end(child)
        self.children = [child for child in self.children if child.process.returncode == 0]  # at its end just then
        self._reap()

    def _report(self, folder: Path) -> bool:
        command = [sys.executable, "-m", "kdlab.report", str(folder), f"runs={self.places.runs}"]
        return subprocess.run(command, check=False).returncode == 0


def _end(child: Child) -> None:
    """Ends a point with all its processes, whatever they do; nothing where it has ended."""
    if child.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()


@contextlib.contextmanager
def _told() -> Iterator[list[int]]:
    """The signals to stop that have come so far; a list, so that nothing is cut off where it stands."""
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
