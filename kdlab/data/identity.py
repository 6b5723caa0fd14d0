"""What tells the targets of a corpus apart, row by row: a cache made of them is aligned and checked by it."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from kdlab.data.labels import PseudoLabels
from kdlab.data.prepared import PreparedCorpus, Rows
from kdlab.errors import UserError

IDENTITY = np.dtype([("row_id", "<i8"), ("src_hash", "<u8"), ("tgt_hash", "<u8"), ("tgt_len", "<i4")])
ROWS_AT_ONCE = 8192

Identities = Iterator[NDArray[np.void]]


def identities(corpus: PreparedCorpus, labels: PseudoLabels | None) -> dict[str, Identities]:
    """The targets of a corpus in row order, some thousand at a time: gold, valid and, where there are labels, pseudo.

    Each has the id and the source hash of its row, a hash of its token ids and its length (both 0 without a target).
    Raises: UserError where a row has several labels: a cache has room for one.
    """
    if labels is not None and labels.several:
        raise UserError(
            "a teacher cache keeps one pseudo-label a row, but these rows have several, of which every epoch draws "
            "another; choose teacher_cache=none, or one label a row, e.g. labels=first"
        )
    parts = {"gold": _of_rows(corpus.train, None), "valid": _of_rows(corpus.valid, None)}
    return parts if labels is None else {**parts, "pseudo": _of_rows(corpus.train, labels)}


def _of_rows(rows: Rows, labels: PseudoLabels | None) -> Identities:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        index = np.arange(start, min(start + ROWS_AT_ONCE, len(rows)))
        found = np.zeros(len(index), IDENTITY)
        found["row_id"], found["src_hash"] = rows.row_id[index], rows.src_hash[index]
        there = rows.has_gold[index] if labels is None else labels.has_label[index]
        ids = (rows if labels is None else labels).tgt_ids(index[there])
        found["tgt_len"][there] = [len(row) for row in ids]
        found["tgt_hash"][there] = [_hash(row) for row in ids]
        yield found


def _hash(ids: NDArray[np.int32]) -> int:
    return int.from_bytes(blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest(), "little")
