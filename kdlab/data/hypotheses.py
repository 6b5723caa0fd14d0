"""All that a teacher said of a corpus: the hypotheses of every row, tied to it by row id and source hash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pyarrow as pa

from kdlab.data.arrow import TableWriter, stream_batches
from kdlab.errors import UserError

FILE = "hypotheses.arrow"
HYPOTHESES_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("src_hash", pa.uint64()),
        # an entry a hypothesis, best first; none where the source is too long for the teacher
        ("tgt", pa.list_(pa.list_(pa.int32()))),  # ids of the corpus's tokenizer, EOS last
        ("text", pa.list_(pa.string())),
        ("score", pa.list_(pa.float64())),  # as the search ranks
        ("log_prob", pa.list_(pa.float64())),  # nats, summed over the teacher's tokens, EOS included
        ("num_tokens", pa.list_(pa.int32())),  # of the teacher, EOS included
        ("finished", pa.list_(pa.bool_())),  # not cut off at the greatest length
    ]
)


@final
class HypothesesWriter:
    """Writes the hypotheses of a folder, each corpus row once, in any order; `with` closes it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = TableWriter(folder / FILE, HYPOTHESES_SCHEMA)

    def write(self, columns: dict[str, Any]) -> None:
        """Adds rows: a list for each column of HYPOTHESES_SCHEMA."""
        self._writer.write(columns)

    def __enter__(self) -> HypothesesWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.__exit__(*exception)


def read_hypotheses(folder: Path | str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a folder as dictionaries by column, some thousands at a time. Raises: UserError."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no hypotheses (no {FILE}), so there is nothing to choose labels from; name the folder of "
            "a finished decode_sources step"
        )
    for batch in stream_batches(path):
        yield batch.to_pylist()
