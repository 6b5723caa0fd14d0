"""metrics.csv: every number of a training, always written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kdlab import files
from kdlab.strategies import ranks

HEADER = "step,metric,value\n"


class MetricsCsv(Logger):
    """A Lightning logger that appends `step,metric,value` rows and survives a kill.

    (Lightning's own CSVLogger deletes the earlier rows when a run resumes.)
    """

    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        if not path.exists() and not ranks.rank():
            files.write_text(path, HEADER)

    @property
    def name(self) -> str:
        """Lightning wants one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning wants one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one row a metric."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows((step, name, f"{v:.6g}") for name, v in metrics.items())

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in run.json and the manifest."""

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric, in order."""
        found: dict[str, list[tuple[int, float]]] = {}
        with self._path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
        return found

    def forget_after(self, step: int) -> None:
        """Drops rows behind a checkpoint, and a torn last one: they are written again."""
        rows = self._path.read_text(encoding="utf-8").split("\n")[1:-1]
        kept = [row for row in rows if row.count(",") == 2 and int(row.split(",")[0]) <= step]
        files.write_text(self._path, HEADER + "".join(f"{row}\n" for row in kept))
