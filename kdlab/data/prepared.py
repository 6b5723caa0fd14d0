"""The prepared corpus: what prepare_corpus wrote, opened for training, decoding and scoring; rows stay on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlab.data.arrow import IdColumn, TextColumn, numbers, open_table
from kdlab.data.tokenizer import Tokenizer
from kdlab.errors import UserError

ROWS_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),  # number of the pair in the raw stream, from 0, over all sources in order
        ("src_hash", pa.uint64()),  # cleaning.hash_lines of the source text
        ("src", pa.list_(pa.int32())),  # ids, EOS last
        ("tgt", pa.list_(pa.int32())),  # empty for a row of source-only text
        ("src_text", pa.string()),
        ("tgt_text", pa.string()),
    ]
)


@final
class Rows:
    """Sentence pairs of a memory-mapped Arrow file, fetched by position (0 .. len - 1), not by row_id.

    The arrays are read-only views of the file or computed once at first use; lengths count EOS.
    """

    def __init__(self, table: pa.Table):
        self._table = table
        self._src, self._tgt = IdColumn(table, "src"), IdColumn(table, "tgt")
        self._src_text, self._tgt_text = TextColumn(table, "src_text"), TextColumn(table, "tgt_text")

    @classmethod
    def open(cls, path: Path) -> Rows:
        """The rows of one file. Raises: UserError."""
        return cls(open_table(path, tuple(ROWS_SCHEMA.names)))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def src_len(self) -> NDArray[np.int32]:
        return self._src.lengths()

    @cached_property
    def tgt_len(self) -> NDArray[np.int32]:
        return self._tgt.lengths()

    @cached_property
    def has_gold(self) -> NDArray[np.bool_]:
        """Marks the rows with a target; the others are source-only text."""
        return self.tgt_len > 0

    @cached_property
    def row_id(self) -> NDArray[np.int64]:
        """Number of each pair in the raw stream; rising."""
        return numbers(self._table, "row_id")

    @cached_property
    def src_hash(self) -> NDArray[np.uint64]:
        """64-bit hash of each source text."""
        return numbers(self._table, "src_hash")

    def src_ids(self, index: NDArray[Any]) -> list[NDArray[np.int32]]:
        return self._src.take(index)

    def tgt_ids(self, index: NDArray[Any]) -> list[NDArray[np.int32]]:
        return self._tgt.take(index)

    def src_text(self, index: NDArray[Any]) -> list[str]:
        return self._src_text.take(index)

    def tgt_text(self, index: NDArray[Any]) -> list[str]:
        return self._tgt_text.take(index)


@final
@dataclass(frozen=True)
class TestSet:
    """Raw lines to translate and what they are scored against: `references[k][i]` is reference k of line i."""

    __test__ = False  # not a test case, whatever pytest makes of its name

    src: list[str]
    references: list[list[str]]


@final
@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus folder: tokenizer, training rows, validation rows, test sets."""

    folder: Path
    tokenizer: Tokenizer
    train: Rows
    valid: Rows  # every pair of the validation set, never cleaned

    @classmethod
    def open(cls, folder: Path | str) -> PreparedCorpus:
        """The corpus in a folder. Raises: UserError where prepare_corpus did not write it."""
        folder = Path(folder)
        if not (folder / "report.json").is_file():
            raise UserError(
                f"{folder} holds no prepared corpus (no report.json), so there is nothing to read; name the folder of "
                f"a finished prepare_corpus step"
            )
        return cls(
            folder=folder,
            tokenizer=Tokenizer.open(folder / "tokenizer"),
            train=Rows.open(folder / "train.arrow"),
            valid=Rows.open(folder / "valid.arrow"),
        )

    @property
    def valid_text(self) -> tuple[list[str], list[str]]:
        """Raw source and target lines of the validation set."""
        every = np.arange(len(self.valid))
        return self.valid.src_text(every), self.valid.tgt_text(every)

    @property
    def tests(self) -> list[str]:
        """Names of the test sets, sorted."""
        return sorted(path.stem for path in (self.folder / "tests").glob("*.jsonl"))

    def test(self, name: str) -> TestSet:
        """One test set. Raises: UserError for an unknown name."""
        if name not in self.tests:
            known = ", ".join(self.tests) or "none"
            raise UserError(f"no test set '{name}' in this corpus, so nothing is scored on it; it has: {known}")
        text = (self.folder / "tests" / f"{name}.jsonl").read_bytes().decode()
        pairs = [json.loads(line) for line in text.split("\n") if line]
        return TestSet(src=[pair["src"] for pair in pairs], references=[[pair["ref"] for pair in pairs]])
