"""comparisons.csv: what was measured of claims, with the p-values.

A p-value needs every sentence's counts, from the store or sentences.csv, and seconds. So comparisons.csv holds it
beside the keys of the evaluated models: while these and the difference of scores are the same it is taken from there,
else computed anew, over the seeds whose counts are known (`p_seeds` where these are not all); blank without any.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kdlab import files
from kdlab.errors import UserError
from kdlab.report.significance import Contrast
from kdlab.report.verdict import NOT_RUN

FILE = "comparisons.csv"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison on one test set. Blank, None or empty: not run, or not known.

    Units: differences BLEU, of a slope BLEU for a doubling of the parameters. `keys`: evaluated models by arm, each arm
    with its weight, in the order of `seeds`.
    """

    claim: str
    comparison: str
    test: str = ""
    keys: str = ""
    seeds: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    resampled: Contrast | None = None
    signature: str = ""
    verdict: str = NOT_RUN
    remark: str = ""


def dump(lines: Sequence[Line]) -> str:
    """comparisons.csv: a row for each line that was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["claim", "comparison", "test", "keys", "seeds", "difference", "p", "low", "high", "p_seeds", "signature"]
    )
    for line in lines:
        if line.differences:
            found = line.resampled
            p_value = (found.p_value, found.low, found.high, " ".join(map(str, found.seeds))) if found else [""] * 4
            shown = [repr(round(fmean(line.differences), 4)), *p_value]
            seeds = " ".join(map(str, line.seeds))
            writer.writerow([line.claim, line.comparison, line.test, line.keys, seeds, *shown, line.signature])
    return out.getvalue()


def read(path: Path) -> dict[tuple[str, str, str, float], Contrast]:
    """What was computed before, by test set, keys, signature and difference. Raises: UserError."""
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {
                (row["test"], row["keys"], row["signature"], float(row["difference"])): Contrast(
                    float(row["p"]),
                    float(row["low"]),
                    float(row["high"]),
                    tuple(int(seed) for seed in row["p_seeds"].split()),
                )
                for row in csv.DictReader(file)
                if row["p"]
            }
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}), and p-values would be lost; restore it from git"
        ) from error


def write(folder: Path, lines: Sequence[Line]) -> None:
    """Writes comparisons.csv."""
    files.write_text(folder / FILE, dump(lines))
