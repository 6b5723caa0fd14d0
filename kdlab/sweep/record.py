"""What was submitted: jobs with their ids, tasks and the results that they make, kept as sweep.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.errors import UserError
from kdlab.sweep.graph import Job, Task

FILE = "sweep.json"


@dataclass(frozen=True)
class Submitted:
    """A sweep in its folder: where results go, and the jobs with their ids (None: not submitted)."""

    folder: Path
    store: Path
    runs: list[str]  # run folders that the report reads
    jobs: list[Job]
    ids: dict[str, str]

    def write(self) -> None:
        """Puts it on disk, whole."""
        plain: dict[str, Any] = {"store": str(self.store), "runs": self.runs, "ids": self.ids}
        files.write_json(self.folder / FILE, {**plain, "jobs": [asdict(job) for job in self.jobs]})

    @classmethod
    def read(cls, folder: Path) -> Submitted:
        """The sweep of a folder. Raises: UserError where there is none."""
        try:
            found = files.read_json(folder / FILE)
        except FileNotFoundError:
            raise UserError(
                f"{folder} holds no sweep (no {FILE}), so there is nothing to ask about; write the folder that "
                "kdlab.sweep submit has printed"
            ) from None
        jobs = [Job(**{**job, "tasks": [Task(**task) for task in job["tasks"]]}) for job in found["jobs"]]
        return cls(folder, Path(found["store"]), found["runs"], jobs, found["ids"])
