"""Files of decoded rows, one a shard of the plan: lines that may be cut off anywhere and are taken up there again.

    <crc> {"plan": ..., "shard": ..., ...}                     the first line: what the file is
    <crc> {"row_id": ..., "src_hash": ..., "tgt": [...], ...}  one a row, in the order of the plan
    <crc> {"batch": ..., ...}                                  behind the rows of each batch: they are complete

<crc> is the CRC-32 of the JSON behind it, 8 hex. While a shard is worked on, its file is `shard_000012.<worker>.part`:
whoever takes over from a dead worker copies its whole batches, so that one who was only thought dead writes nowhere.
A finished file is put on disk and renamed to `shard_000012.jsonl`. Only those count, and the merge reads every line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, final
from zlib import crc32

from kdlab import files, runtime
from kdlab.data.decode_plan import DecodePlan
from kdlab.data.hypotheses import HYPOTHESES_SCHEMA
from kdlab.data.prepared import Rows
from kdlab.data.tokenizer import EOS_ID

COLUMNS = tuple(name for name in HYPOTHESES_SCHEMA.names if name not in ("row_id", "src_hash"))  # a list a row
_FINISHED = re.compile(r"shard_(\d{6,})\.jsonl")


@final
class Damage(Exception):
    """A line of a shard's file that is not what the plan wants there; `cut`: the file ends in it or before it."""

    def __init__(self, line: int, what: str, *, cut: bool = False):
        super().__init__(f"line {line}: {what}")
        self.cut = cut


@final
@dataclass(frozen=True)
class DecodedBatch:
    """The rows of a batch, what stands behind them, and where in the file they end."""

    rows: list[dict[str, Any]]
    note: dict[str, Any]
    end: int


@final
@dataclass(frozen=True)
class Shards:
    """The files of a plan's shards in one folder, which must exist: many processes work there at once."""

    folder: Path
    plan: DecodePlan
    corpus: Rows
    fingerprint: str  # of the plan

    def path(self, shard: int) -> Path:
        """Of the finished file."""
        return self.folder / f"shard_{shard:06d}.jsonl"

    def finished(self) -> set[int]:
        """The numbers of the shards that are finished. Raises: FileNotFoundError when the folder is gone."""
        found = (_FINISHED.fullmatch(path.name) for path in self.folder.iterdir())
        return {int(match[1]) for match in found if match}

    def read(self, path: Path, shard: int) -> Iterator[dict[str, Any] | DecodedBatch]:
        """The first line of a file, then its batches, each held against the plan.

        Raises: Damage at the first line that is not as planned, or behind the last one.
        """
        with open(path, "rb") as file:
            lines = _Lines(file)
            first = lines.read()
            if (first.get("plan"), first.get("shard")) != (self.fingerprint, shard):
                raise Damage(1, f"shard {first.get('shard')} of plan {first.get('plan')}, not {shard} of this plan")
            yield first
            for batch in self.plan.batches(shard):
                at = self.plan.rows(batch)
                row_ids, hashes = self.corpus.row_id[at].tolist(), self.corpus.src_hash[at].tolist()
                rows = [lines.read_row(*wanted) for wanted in zip(row_ids, hashes, strict=True)]
                note = lines.read(f"the end of batch {batch}")
                if note.get("batch") != batch:
                    raise Damage(lines.number, f"the end of batch {batch} belongs here, not {_name(note)}")
                yield DecodedBatch(rows, note, file.tell())
            if more := file.readline():
                lines.number += 1
                raise Damage(lines.number, f"nothing belongs here, the shard is complete; found {_shown(more)}")

    def worker(self, shard: int, name: str, first: dict[str, Any]) -> ShardWriter:
        """A writer that goes on where the best of the files that dead workers left was cut off.

        Only for who holds the shard's lease. `first`: what the first line says beside plan and shard.
        """
        best, done = b"", 0
        left = list(self.folder.glob(f"shard_{shard:06d}.*.part"))
        for path in left:
            end, batches = self._whole(path, shard)
            if batches > done:
                best, done = path.read_bytes()[:end], batches
        path = self.folder / f"shard_{shard:06d}.{name}.part"
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - the writer closes it
        file.write(best or _line({"plan": self.fingerprint, "shard": shard, **first}))
        for other in left:
            other.unlink(missing_ok=True)
        return ShardWriter(file, path, self.path(shard), self.plan.batches(shard)[done:])

    def _whole(self, path: Path, shard: int) -> tuple[int, int]:
        """Where the last whole batch of a file ends, and how many there are."""
        end = batches = 0
        try:
            for found in self.read(path, shard):
                if isinstance(found, DecodedBatch):
                    end, batches = found.end, batches + 1
        except FileNotFoundError:
            return 0, 0
        except Damage as damage:
            if not damage.cut:
                runtime.say(f"{path}, {damage}; what follows batch {batches} is decoded again")
        return end, batches


@final
class ShardWriter:
    """Writes a shard batch by batch; what is written survives the process."""

    def __init__(self, file: Any, path: Path, target: Path, left: range):
        self._file, self._path, self._target = file, path, target
        self.left = left  # batches that are still to be decoded

    def write(self, batch: int, rows: list[dict[str, Any]], note: dict[str, Any]) -> None:
        """Adds a batch, the next one of the plan."""
        if batch != self.left.start:
            raise ValueError(f"batch {batch} comes before {self.left.start}")
        text = b"".join([_line(row) for row in rows]) + _line({"batch": batch, **note})
        if self._file.write(text) != len(text):  # a full disk may take a part
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        self.left = self.left[1:]

    def finish(self) -> None:
        """Puts the file in its place. Raises: FileNotFoundError when the shard is no longer ours, or wanted."""
        self.close()
        files.put_in_place(self._path, self._target)

    def close(self) -> None:
        """Leaves the file as it is, for whoever goes on."""
        with contextlib.suppress(OSError):
            self._file.close()


class _Lines:
    """Lines of a file, each checked by its CRC."""

    def __init__(self, file: BinaryIO):
        self._file, self.number = file, 0

    def read(self, wanted: str = "the first line") -> dict[str, Any]:
        line = self._file.readline()
        self.number += 1
        if not line.endswith(b"\n"):
            what = f"{wanted} is missing: the file ends here" if not line else f"{wanted} is cut off"
            raise Damage(self.number, what, cut=True)
        crc, _, text = line[:-1].partition(b" ")
        if crc != b"%08x" % crc32(text):
            raise Damage(self.number, f"{wanted} is damaged, its CRC does not fit: {_shown(line)}")
        found: dict[str, Any] = json.loads(text)
        return found

    def read_row(self, row_id: int, src_hash: int) -> dict[str, Any]:
        row = self.read(f"row {row_id}")
        if row.get("row_id") != row_id:
            raise Damage(self.number, f"row {row_id} belongs here, not {_name(row)}")
        if row.get("src_hash") != src_hash:
            raise Damage(self.number, f"row {row_id} was decoded from another source than the corpus has there")
        if problem := _problem(row):
            raise Damage(self.number, f"row {row_id} has {problem}")
        return row


def _problem(row: dict[str, Any]) -> str | None:
    """What is wrong with the hypotheses of a row."""
    for name in COLUMNS:
        if len(row[name]) != len(row["tgt"]):
            return f"{len(row['tgt'])} tgt but {len(row[name])} {name}"
    for name in ("score", "log_prob"):
        for value in row[name]:
            if value is None or not isfinite(value):
                return f"a {name} of {value}"
    return None if all(ids[-1:] == [EOS_ID] for ids in row["tgt"]) else "a hypothesis without EOS"


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return b"%08x %b\n" % (crc32(text), text)


def _name(value: dict[str, Any]) -> str:
    return f"row {value['row_id']}" if "row_id" in value else f"the end of batch {value.get('batch')}"


def _shown(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))
