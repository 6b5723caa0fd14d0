"""Pseudo-labels: a teacher's translations of training sources, each tied to its row by row id and source hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlab.data.arrow import IdColumn, TableWriter, TextColumn, numbers, open_table
from kdlab.data.prepared import Rows
from kdlab.data.tokenizer import EOS_ID
from kdlab.errors import UserError

FILE = "labels.arrow"
LABELS_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("src_hash", pa.uint64()),
        ("tgt", pa.list_(pa.int32())),  # ids, EOS last
        ("text", pa.string()),
        ("score", pa.float64()),  # as the search ranks: log_prob over the length penalty
        ("log_prob", pa.float64()),  # nats, summed over the label's tokens, EOS included
    ]
)


@final
class LabelWriter:
    """Writes the pseudo-labels of a folder, in batches and in any order of rows; `with` closes it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = TableWriter(folder / FILE, LABELS_SCHEMA)

    def write(self, *, row_id: Any, src_hash: Any, tgt: Any, text: Any, score: Any, log_prob: Any) -> None:
        """Adds labels, one value of each argument a label; `row_id` and `src_hash` are those of the corpus rows."""
        columns = {"row_id": row_id, "src_hash": src_hash, "tgt": tgt}
        self._writer.write({**columns, "text": text, "score": score, "log_prob": log_prob})

    def __enter__(self) -> LabelWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.__exit__(*exception)


@final
class PseudoLabels:
    """Pseudo-labels by position of the corpus row that they translate; a row may have none."""

    def __init__(self, table: pa.Table, label_of_row: NDArray[np.int64]):
        """`label_of_row`: position of each corpus row's label in the table, -1 without one. See `open`."""
        self._label, self._tgt, self._text = label_of_row, IdColumn(table, "tgt"), TextColumn(table, "text")
        self.has_label: NDArray[np.bool_] = label_of_row >= 0
        lengths = self._tgt.lengths()
        self.tgt_len: NDArray[np.int32] = np.zeros(len(label_of_row), np.int32)
        self.tgt_len[self.has_label] = lengths[label_of_row[self.has_label]]

    @classmethod
    def open(cls, folder: Path | str, rows: Rows) -> PseudoLabels:
        """The labels of a folder, each checked against its row.

        Raises: UserError for an unknown or repeated row id, a source that is not the row's, a label without EOS.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(
                f"{folder} holds no pseudo-labels (no {FILE}), so there is nothing to distil; name the folder of a "
                f"finished pseudo_label step"
            )
        table = open_table(path, tuple(LABELS_SCHEMA.names))
        row_id, order = numbers(table, "row_id"), np.arange(len(rows))
        where = np.searchsorted(rows.row_id, row_id).clip(max=max(len(rows) - 1, 0))
        unknown = np.ones(len(row_id), np.bool_) if not len(rows) else rows.row_id[where] != row_id
        _refuse(path, row_id, unknown, "rows that the corpus does not have")
        _refuse(
            path, row_id, rows.src_hash[where] != numbers(table, "src_hash"), "another source than the corpus has there"
        )
        label_of_row = np.full(len(order), -1, np.int64)
        label_of_row[where] = np.arange(len(row_id))
        _refuse(path, row_id, label_of_row[where] != np.arange(len(row_id)), "a row that has another label too")
        _refuse(path, row_id, IdColumn(table, "tgt").last() != EOS_ID, "no EOS at its end")
        return cls(table, label_of_row)

    def tgt_ids(self, index: NDArray[Any]) -> list[NDArray[np.int32]]:
        """Label ids (EOS last) of the given corpus rows, each of which must have one."""
        return self._tgt.take(self._label[index])

    def text(self, index: NDArray[Any]) -> list[str]:
        """Label text of the given corpus rows, each of which must have one."""
        return self._text.take(self._label[index])


def _refuse(path: Path, row_id: NDArray[np.int64], wrong: NDArray[np.bool_], what: str) -> None:
    if not wrong.any():
        return
    first = int(np.flatnonzero(wrong)[0])
    raise UserError(
        f"{path}: {int(wrong.sum())} of {len(row_id)} pseudo-labels have {what} (first: label {first}, row id "
        f"{row_id[first]}); a student would learn wrong pairs; decode the labels again from this corpus"
    )
