"""A grid on this machine: what of it is done, what the rest will cost, and then the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kdlab.artifacts.store import Store
from kdlab.report import results
from kdlab.sweep import bill
from kdlab.sweep.cell import Cell
from kdlab.sweep.cost import costs
from kdlab.sweep.runner import Places, Runner


def run(
    cells: Sequence[Cell], places: Places, *, device: str, threads: int, workers: int, dry_run: bool, again: str
) -> int:
    """Prints the cost of the cells that are not done, and runs them; returns the exit code.

    Args:
        cells: in the order of their grids; a run that an earlier grid has is there again, and made once.
        device, threads: of every training.
        dry_run: only print.
        again: the command that goes on after a stop.
    """
    store = Store(places.store)
    finished = {cell.experiment: results.finished(places.results(cell)) for cell in cells}
    first = {cell.point.folder: cell for cell in reversed(cells)}
    own = [cell for cell in cells if first[cell.point.folder] is cell]
    todo = [cell for cell in own if not cell.is_done(finished[cell.experiment])]
    done = [cell for cell in own if cell.is_done(finished[cell.experiment])]
    rows = [row for path in sorted(places.experiments.glob("*/results.csv")) for row in results.read(path)]
    missing = costs(todo, done, rows, store)
    asked = []
    for grid in dict.fromkeys(cell.grid for cell in cells):
        counted = [sum(cell.grid == grid for cell in some) for some in (cells, done, own)]
        asked.append(bill.Asked(grid, counted[0], counted[1], counted[0] - counted[2]))
    on_gpu = device == "cuda"
    parallel = workers if on_gpu else min(workers * threads, os.cpu_count() or 1)
    unit = "GPU-hours" if on_gpu else "CPU-hours"
    print(
        *bill.lines(asked, list(missing.values()), unit=unit, workers=workers, parallel=parallel), sep="\n", flush=True
    )
    if dry_run or not todo:
        return 0
    hours = {place: cost.hours or 0.0 for place, cost in missing.items()}
    return Runner(todo, hours, places, workers, parallel).run(again)
