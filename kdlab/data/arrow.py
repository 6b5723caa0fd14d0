"""Arrow files: written in batches through `datasets`, memory-mapped, and read at random straight from their buffers.

A file is a list of chunks; a column keeps a numpy view of each chunk's buffers, so that fetching a row is two look-ups
and a slice of the mapped file. The views are read-only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlab.errors import UserError

ROWS_PER_CHUNK = 8192


@final
class TableWriter:
    """Writes one Arrow file, a batch at a time; `with` closes it."""

    def __init__(self, path: Path, schema: pa.Schema):
        from datasets.arrow_writer import ArrowWriter

        self._schema = schema
        self._writer = ArrowWriter(schema=schema, path=str(path), writer_batch_size=ROWS_PER_CHUNK)
        self._num_rows = 0

    def write(self, columns: dict[str, Any]) -> None:
        """Adds rows given as one list or array for each column of the schema."""
        arrays = [pa.array(columns[field.name], type=field.type) for field in self._schema]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._num_rows += len(table)
        if len(table):
            self._writer.write_table(table)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.finalize()


def open_table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """The memory-mapped table of an Arrow file. Raises: UserError where it is no such file or lacks a column."""
    from datasets import Dataset

    try:
        table = Dataset.from_file(str(path)).data.table
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path} cannot be opened as an Arrow file ({error}), so its rows are lost; delete its folder, and the "
            f"step that made it runs again"
        ) from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise UserError(
            f"{path} has no column {', '.join(missing)}, so it was made by something else; name the folder of a step "
            f"that writes {', '.join(columns)}"
        )
    return table


def stream_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The chunks of an Arrow file in order, read and not mapped: mapped pages would count as our memory."""
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def numbers(table: pa.Table, column: str) -> NDArray[Any]:
    """A column of numbers; a view of the mapped file when it is one chunk."""
    chunks = [chunk.to_numpy() for chunk in table.column(column).chunks]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.empty(0, table.schema.field(column).type.to_pandas_dtype())


@final
class IdColumn:
    """A column of lists of token ids."""

    def __init__(self, table: pa.Table, column: str):
        chunks = table.column(column).chunks
        self._first = _first_rows(chunks)
        self._views = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]

    def lengths(self) -> NDArray[np.int32]:
        """Number of ids in every row."""
        parts = [np.diff(offsets).astype(np.int32, copy=False) for offsets, _ in self._views]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def last(self) -> NDArray[np.int32]:
        """The last id of every row; -1 for a row without ids."""
        parts = []
        for offsets, values in self._views:
            ends = np.full(len(offsets) - 1, -1, np.int32)
            filled = np.diff(offsets) > 0
            ends[filled] = values[offsets[1:][filled] - 1]
            parts.append(ends)
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def take(self, rows: NDArray[Any]) -> list[NDArray[np.int32]]:
        """The ids of the given rows, in the given order; read-only views."""
        taken = []
        for chunk, row in _locate(self._first, rows):
            offsets, values = self._views[chunk]
            taken.append(values[offsets[row] : offsets[row + 1]])
        return taken


@final
class TextColumn:
    """A column of strings."""

    def __init__(self, table: pa.Table, column: str):
        chunks = table.column(column).chunks
        self._first = _first_rows(chunks)
        self._views = [_text_view(chunk) for chunk in chunks]

    def take(self, rows: NDArray[Any]) -> list[str]:
        """The texts of the given rows, in the given order."""
        taken = []
        for chunk, row in _locate(self._first, rows):
            offsets, data = self._views[chunk]
            taken.append(str(data[offsets[row] : offsets[row + 1]], "utf-8"))
        return taken


def _text_view(chunk: pa.StringArray) -> tuple[NDArray[np.int32], memoryview]:
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int32, count=len(chunk) + 1, offset=4 * chunk.offset)
    return ends, memoryview(data if data is not None else b"")


def _first_rows(chunks: list[pa.Array]) -> NDArray[np.int64]:
    return np.cumsum([0] + [len(chunk) for chunk in chunks], dtype=np.int64)


def _locate(first: NDArray[np.int64], rows: NDArray[Any]) -> Iterator[tuple[int, int]]:
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= first[-1]):
        raise IndexError(f"rows {rows.min()}..{rows.max()} asked of a table of {first[-1]} rows")
    chunks = np.searchsorted(first, rows, side="right") - 1
    return zip(chunks.tolist(), (rows - first[chunks]).tolist(), strict=True)
