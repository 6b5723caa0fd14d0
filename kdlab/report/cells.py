"""Numbers of one cell: mean over seeds, gain over the student alone, and what keeps scores from being compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from kdlab.report.results import DONE, FAILED, MISSING, Result

ByKey = Mapping[tuple[str, str], Result]


def by_key(results: Iterable[Result]) -> dict[tuple[str, str], Result]:
    """Finished results by key and test set, to find the student alone of a student."""
    return {(result.key, result.test): result for result in results if result.state == DONE}


def by_seed(results: Iterable[Result]) -> dict[int | None, Result]:
    """The finished result of every seed; of several (the code has changed between them) the last."""
    return {result.seed: result for result in results if result.state == DONE}


def mean(values: Sequence[float]) -> str:
    """`24.3 ± 0.2 (3)`: mean, sample standard deviation and number of seeds; `24.3` for one seed; blank for none."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{fmean(values):.1f} ± {stdev(values):.1f} ({len(values)})"


def scores(results: Iterable[Result], metric: str) -> list[float]:
    """One score a seed."""
    found = (result.score(metric) for result in by_seed(results).values())
    return [score for score in found if score is not None]


def gain(results: Iterable[Result], lookup: ByKey, metric: str) -> str:
    """`+1.2, p 0.001`: mean gain over the student alone of the same seed, and the range of the seeds' p-values.

    Blank where there is none to compare with, or only one of another signature.
    """
    gains, p_values = [], []
    for result in by_seed(results).values():
        alone = lookup.get((result.baseline, result.test))
        score, other = result.score(metric), alone.score(metric) if alone else None
        if alone is None or score is None or other is None or alone.signature(metric) != result.signature(metric):
            continue
        gains.append(score - other)
        p_values.append(result.p_value(metric))
    if not gains:
        return ""
    return signed(fmean(gains)) + _p_text(p_values)


def signed(value: float) -> str:
    """`+1.2`, `-0.3`, `0.0`."""
    shown = f"{value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown


def state(results: Sequence[Result]) -> str:
    """`failed` or `missing` for results none of which is done; blank where some are, or there are none at all."""
    states = {result.state for result in results}
    return "" if DONE in states or not states else FAILED if FAILED in states else MISSING


def gaps(results: Iterable[Result]) -> str:
    """What a mean leaves out, e.g. `seed 2 failed: DiskFull ...`; blank where nothing."""
    found = [
        f"seed {result.seed} {result.state}" + (f": {result.error}" if result.error else "")
        for result in results
        if result.state != DONE
    ]
    return "; ".join(dict.fromkeys(found))


def mixed(results: Iterable[Result]) -> list[str]:
    """One sentence for every kind of device or number format that scores of one table do not share."""
    kinds = {
        "device of training": "train_device",
        "precision of training": "train_precision",
        "device of decoding": "device",
        "precision of decoding": "precision",
    }
    done = [result for result in results if result.state == DONE]
    found = []
    for what, name in kinds.items():
        values = sorted({str(getattr(result, name)) for result in done} - {""})
        if len(values) > 1:
            found.append(f"Not alike: {what} is {' and '.join(values)}.")
    return found


def parameters(count: int | None) -> str:
    """`18.9 M`."""
    return "" if count is None else f"{count / 1e6:.1f} M"


def compression(result: Result) -> str:
    """Parameters of the teacher by those of the model, to one decimal and never more than it is."""
    if not result.parameters or not result.teacher_parameters or result.model == "teacher":
        return ""
    return f"{math.floor(10 * result.teacher_parameters / result.parameters) / 10:.1f}"


def hours(values: Iterable[float | None]) -> str:
    """Mean hours over seeds, to two digits."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2g}" if known else ""


def _p_text(p_values: Sequence[float | None]) -> str:
    known = sorted(p for p in p_values if p is not None)
    if len(known) < len(p_values):
        return ""
    low, high = f"{known[0]:.3f}", f"{known[-1]:.3f}"
    return f", p {low}" if low == high else f", p {low} to {high}"
