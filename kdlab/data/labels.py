"""Pseudo-labels: a teacher's translations of training sources, each tied to its row by row id and source hash.

A row has none, one or several. Of several an epoch takes one: the epochs fall into turns as long as the row has labels,
a turn begins at a label drawn by a hash of (row_id, turn, seed) and takes one after the other, so each exactly once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlab.data.arrow import IdColumn, TableWriter, TextColumn, numbers, open_table, stream_batches
from kdlab.data.mixing import uniform
from kdlab.data.prepared import Rows
from kdlab.data.tokenizer import EOS_ID
from kdlab.errors import UserError

FILE = "labels.arrow"
OWN_DRAW = 0x6C6162656C73  # so that which label is drawn tells nothing of whether the row takes its gold (mixing.py)
LABELS_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("src_hash", pa.uint64()),
        ("tgt", pa.list_(pa.int32())),  # ids, EOS last
        ("text", pa.string()),
        ("score", pa.float64()),  # as the search ranks: log_prob over the length penalty
        ("log_prob", pa.float64()),  # nats, summed over the label's tokens, EOS included
        ("rank", pa.int32()),  # of the hypothesis among those of its row, 0 the best; rising within a row
    ]
)


@final
class LabelWriter:
    """Writes the pseudo-labels of a folder, in batches, rows in any order, labels of a row in one piece."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = TableWriter(folder / FILE, LABELS_SCHEMA)

    def write(
        self, *, row_id: Any, src_hash: Any, tgt: Any, text: Any, score: Any, log_prob: Any, rank: Any = None
    ) -> None:
        """Adds labels, one value of each argument a label; `row_id` and `src_hash` are those of the corpus rows.

        Args:
            rank: None where each row has one label, the best of its hypotheses.
        """
        columns = {"row_id": row_id, "src_hash": src_hash, "tgt": tgt, "text": text, "score": score}
        rank = np.zeros(len(text), np.int32) if rank is None else rank
        self._writer.write({**columns, "log_prob": log_prob, "rank": rank})

    def __enter__(self) -> LabelWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.__exit__(*exception)


@final
class PseudoLabels:
    """Pseudo-labels by position of the corpus row that they translate: of each row the one that is drawn, if any."""

    def __init__(self, table: pa.Table, row_id: NDArray[np.int64], first: NDArray[np.int64], num: NDArray[np.int32]):
        """`first`: where in the table the labels of each corpus row begin; `num`: how many it has. See `open`."""
        self._tgt, self._text = IdColumn(table, "tgt"), TextColumn(table, "text")
        self._row_id, self._first, self.num_labels = row_id, first, num
        self.has_label: NDArray[np.bool_] = num > 0
        self._lengths = self._tgt.lengths()
        self.longest = int(self._lengths.max(initial=0))  # tokens of the longest label, drawn or not
        self._draw(np.zeros_like(num))

    @classmethod
    def open(cls, folder: Path | str, rows: Rows) -> PseudoLabels:
        """The labels of a folder, each checked against its row; drawn is the best one of each.

        Raises: UserError for an unknown or repeated row id, a source that is not the row's, a label without EOS.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(
                f"{folder} holds no pseudo-labels (no {FILE}), so there is nothing to distil; name the folder of a "
                f"finished pseudo_label step"
            )
        table = open_table(path, tuple(LABELS_SCHEMA.names))
        row_id, rank = numbers(table, "row_id"), numbers(table, "rank")
        where = np.searchsorted(rows.row_id, row_id).clip(max=max(len(rows) - 1, 0))
        unknown = np.ones(len(row_id), np.bool_) if not len(rows) else rows.row_id[where] != row_id
        _refuse(path, row_id, unknown, "rows that the corpus does not have")
        _refuse(
            path, row_id, rows.src_hash[where] != numbers(table, "src_hash"), "another source than the corpus has there"
        )
        begins = np.flatnonzero(np.diff(where, prepend=-1))  # labels of a row lie together
        length = np.diff(begins, append=len(where))
        first, num = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.int32)
        first[where[begins]], num[where[begins]] = begins, length
        again = np.repeat(first[where[begins]] != begins, length)
        again[1:] |= (where[1:] == where[:-1]) & (rank[1:] <= rank[:-1])
        _refuse(path, row_id, again, "a row that has another label too")
        _refuse(path, row_id, IdColumn(table, "tgt").last() != EOS_ID, "no EOS at its end")
        return cls(table, rows.row_id, first, num)

    @property
    def several(self) -> bool:
        """Whether a row has more than one."""
        return int(self.num_labels.max(initial=0)) > 1

    def drawn(self, epoch: int, seed: int) -> PseudoLabels:
        """The labels of one epoch: one of each row that has any."""
        if not self.several:
            return self
        which = np.zeros_like(self.num_labels)
        for num in np.unique(self.num_labels[self.num_labels > 1]).tolist():
            rows = self.num_labels == num
            start = uniform(self._row_id[rows], epoch // num, seed ^ OWN_DRAW) * num
            which[rows] = (start.astype(np.int64) + epoch) % num
        taken = copy.copy(self)
        taken._draw(which)
        return taken

    def _draw(self, which: NDArray[np.int32]) -> None:
        self._label = np.where(self.has_label, self._first + which, -1)
        self.tgt_len: NDArray[np.int32] = np.zeros(len(which), np.int32)
        self.tgt_len[self.has_label] = self._lengths[self._label[self.has_label]]

    def tgt_ids(self, index: NDArray[Any]) -> list[NDArray[np.int32]]:
        """Label ids (EOS last) of the given corpus rows, each of which must have one."""
        return self._tgt.take(self._label[index])

    def text(self, index: NDArray[Any]) -> list[str]:
        """Label text of the given corpus rows, each of which must have one."""
        return self._text.take(self._label[index])


def stream_labels(folder: Path | str, rows: Rows) -> Iterator[tuple[NDArray[np.int64], dict[str, list[Any]]]]:
    """The labels of a folder in the order of the file, some thousands at a time: their positions in the corpus, and a
    list for each column. Nothing is checked: it is for who has written them."""
    for batch in stream_batches(Path(folder) / FILE):
        yield np.searchsorted(rows.row_id, batch.column("row_id").to_numpy()), batch.to_pydict()


def _refuse(path: Path, row_id: NDArray[np.int64], wrong: NDArray[np.bool_], what: str) -> None:
    if not wrong.any():
        return
    first = int(np.flatnonzero(wrong)[0])
    raise UserError(
        f"{path}: {int(wrong.sum())} of {len(row_id)} pseudo-labels have {what} (first: label {first}, row id "
        f"{row_id[first]}); a student would learn wrong pairs; decode the labels again from this corpus"
    )
