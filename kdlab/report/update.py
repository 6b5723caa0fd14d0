"""results.csv of one folder, brought up to date with runs: by one process at a time, so that no row is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kdlab import files
from kdlab.report import claims, layout, results, sentences
from kdlab.report.collect import Row
from kdlab.report.gather import collected, gather
from kdlab.report.results import Result

LOCK = ".results.lock"
POLL_S = 0.1


def update(out: Path, rows: Sequence[Row], named: Iterable[str], others: Sequence[Path] = ()) -> list[Result]:
    """Merges rows of runs into results.csv of `out`, and returns what it holds then.

    Args:
        named: settings to record although nobody set them on a command line.
        others: folders whose results.csv is merged too.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        known = results.union(results.read(place / "results.csv") for place in (out, *others))
        results.write(out / "results.csv", gather(rows, known, named))
        found = results.read(out / "results.csv")  # as a later report will find it
        if (out.resolve().parent / claims.FILE).exists():  # claims are judged from what is committed
            sentences.update(out, _counts(rows, others), {(one.key, one.test, one.bleu) for one in found})
        return found


def _counts(rows: Sequence[Row], others: Sequence[Path]) -> dict[sentences.Place, Path | str]:
    counts: dict[sentences.Place, Path | str] = {}
    for place in others:
        counts |= sentences.read(place)
    for row in rows:
        for test, scores in row.tests.items():
            if scores.bleu is not None:
                counts[row.key, test, round(scores.bleu, 4)] = row.folder / f"{test}.statistics.json"
    return counts


def add_ended(out: Path, runs: Path) -> list[Result]:
    """Merges what has ended below `runs`, well or badly, into results.csv of an experiment's folder."""
    named = {name for one in layout.read(out) for name in one.named()}
    return update(out, [row for row in collected([runs]) if row.evaluated or row.error], named)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The right to write results.csv. The lock's file stays: a number that is used again could be taken twice."""
    lease = files.Lease(folder / LOCK)
    while lease.try_acquire() is not None:
        time.sleep(POLL_S)
    try:
        yield
    finally:
        lease.release()
