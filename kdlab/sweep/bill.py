"""The cost of some grids as text: a table for each, then all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdlab.sweep.cost import ASSUMED, ASSUMED_RATE, UNKNOWN, Cost

HEADER = ("to be made", "objective", "number", "optimizer steps", "hours each", "hours", "known from")


@dataclass(frozen=True)
class Asked:
    """A grid: how many points it has, how many are done, how many are points of a grid before it."""

    grid: str
    points: int
    done: int
    repeated: int


def lines(grids: Sequence[Asked], costs: Sequence[Cost], *, unit: str, workers: int, parallel: int) -> Iterator[str]:
    """Everything that is printed.

    Args:
        unit: of the hours: CPU-hours or GPU-hours.
        parallel: devices that compute at a time, whatever the workers.
    """
    for asked in grids:
        mine = [cost for cost in costs if cost.grid == asked.grid]
        told = f", {asked.repeated} of them in a grid above" if asked.repeated else ""
        todo = asked.points - asked.done - asked.repeated
        yield f"{asked.grid}: {asked.points} points{told}: {asked.done} done, {todo} to do"
        if mine:
            yield from _aligned([HEADER, *_groups(mine)])
        yield ""
    students = [cost for cost in costs if cost.stage == 1]
    shared = [cost for cost in costs if cost.stage == 0]
    known, unknown = total_hours(costs), sum(cost.hours is None for cost in costs)
    yield (
        f"in all: {len(students)} students and {len(shared)} shared steps, {sum(c.num_steps for c in costs):,} "
        f"optimizer steps: {known:.3g} {unit}{f', and {unknown} steps of which it is {UNKNOWN}' if unknown else ''}"
    )
    each = "device" if unit == "GPU-hours" else "CPU"
    yield f"by the clock about {duration(known / parallel)} with workers={workers} ({parallel} {each}s at work)"
    if any(cost.known_from == ASSUMED for cost in costs):
        rates = ", ".join(f"{rate:.0e} operations a second on {device}" for device, rate in ASSUMED_RATE.items())
        yield f"assumed rate: {rates}; it may be wrong by a factor of two, and more for toys"


def total_hours(costs: Sequence[Cost]) -> float:
    """Of all steps whose hours are known."""
    return sum(cost.hours or 0.0 for cost in costs)


def duration(hours: float) -> str:
    """Hours or minutes."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def _groups(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """One row for steps that differ in nothing that is shown, shared ones first."""
    groups: dict[tuple[int, str, str, str], list[Cost]] = {}
    for cost in sorted(costs, key=lambda cost: cost.stage):
        groups.setdefault((cost.stage, cost.what, cost.objective, cost.known_from), []).append(cost)
    return [
        (
            what,
            objective,
            str(len(some)),
            f"{sum(cost.num_steps for cost in some):,}" if some[0].num_steps else "",
            "?" if known_from == UNKNOWN else f"{total_hours(some) / len(some):.3g}",
            "?" if known_from == UNKNOWN else f"{total_hours(some):.3g}",
            known_from,
        )
        for (_, what, objective, known_from), some in groups.items()
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of one width, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
