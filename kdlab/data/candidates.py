"""The hypotheses of every corpus row as candidates for its label, each checked against its row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdlab.data.hypotheses import FILE, HYPOTHESES_SCHEMA, read_hypotheses
from kdlab.data.prepared import Rows
from kdlab.data.tokenizer import EOS_ID
from kdlab.errors import UserError

OF_ONE = HYPOTHESES_SCHEMA.names[2:]  # columns with an entry a hypothesis


class Candidate(NamedTuple):
    """One hypothesis of a row; fields as in HYPOTHESES_SCHEMA."""

    rank: int  # among the row's, 0 the best
    tgt: list[int]  # EOS last
    text: str
    score: float
    log_prob: float
    num_tokens: int
    finished: bool


@dataclass(frozen=True)
class Row:
    """A corpus row with what the teacher said of it."""

    row_id: int
    src_hash: int
    src_len: int  # tokens, EOS counted
    src_text: str
    gold: str  # without characters where there is no gold target
    candidates: list[Candidate]  # best first


def read_candidates(folder: Path | str, rows: Rows, tgt_vocab_size: int) -> Iterator[list[Row]]:
    """Every row of a corpus, some thousands at a time, in the order of the hypotheses.

    Raises: UserError unless each row is there once with its own source, and every hypothesis is whole: ids of the
    vocabulary with EOS at the end and nowhere else.
    """
    path, seen = Path(folder) / FILE, np.zeros(len(rows), np.bool_)
    for found in read_hypotheses(folder):
        where = _positions(path, found, rows, seen)
        told = (rows.src_len[where].tolist(), rows.src_text(where), rows.tgt_text(where))
        yield [
            Row(
                row_id=columns["row_id"],
                src_hash=columns["src_hash"],
                src_len=src_len,
                src_text=src_text,
                gold=gold,
                candidates=_candidates(path, columns, tgt_vocab_size),
            )
            for columns, src_len, src_text, gold in zip(found, *told, strict=True)
        ]
    if not seen.all():
        first = int(rows.row_id[int(np.argmin(seen))])
        raise _refusal(path, first, f"are missing, with those of {int((~seen).sum()) - 1:,} more rows")


def _positions(path: Path, found: list[dict[str, Any]], rows: Rows, seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which corpus rows these are; marks them as seen."""
    row_id = np.array([columns["row_id"] for columns in found], np.int64)
    where = np.searchsorted(rows.row_id, row_id).clip(max=max(len(rows) - 1, 0))
    unknown = np.ones(len(row_id), np.bool_) if not len(rows) else rows.row_id[where] != row_id
    _refuse(path, row_id, unknown, "belong to no row of the corpus")
    src_hash = np.array([columns["src_hash"] for columns in found], np.uint64)
    _refuse(path, row_id, rows.src_hash[where] != src_hash, "belong to another source than the corpus has there")
    again = seen[where]
    again[np.setdiff1d(np.arange(len(where)), np.unique(where, return_index=True)[1])] = True
    _refuse(path, row_id, again, "are there twice")
    seen[where] = True
    return where


def _candidates(path: Path, columns: dict[str, Any], tgt_vocab_size: int) -> list[Candidate]:
    entries = [columns[name] for name in OF_ONE]
    if len({len(column) for column in entries}) != 1:
        raise _refusal(path, columns["row_id"], "have columns of different lengths")
    found = [Candidate(rank, *values) for rank, values in enumerate(zip(*entries, strict=True))]
    for candidate in found:
        ids = candidate.tgt
        if not ids or ids[-1] != EOS_ID or EOS_ID in ids[:-1] or min(ids) < 0 or max(ids) >= tgt_vocab_size - 1:
            raise _refusal(path, columns["row_id"], f"have ids that are no target (hypothesis {candidate.rank + 1})")
    return found


def _refuse(path: Path, row_id: NDArray[np.int64], wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise _refusal(path, int(row_id[np.argmax(wrong)]), what)


def _refusal(path: Path, row_id: int, what: str) -> UserError:
    return UserError(
        f"{path}: the hypotheses of row id {row_id} {what}, so labels would be of wrong pairs; decode this corpus again"
    )
