"""The folder of a teacher cache: flat columns of numbers for every real target position, and what they were made from.

cache.json         kind, columns, temperatures, which column is the last layer, what it was made from; written last
<part>.rows.npy    who each row is (data/identity.py), in row order; parts: gold, pseudo, valid
<part>.<column>    numbers of all positions, row by row: a row begins where the rows before it end
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CARD = "cache.json"
NUMPY = {"fp32": "<f4", "bf16": "<i2", "int32": "<i4", "uint16": "<u2"}  # numpy has no bf16: its 16 bits as they are


@dataclass(frozen=True)
class Column:
    """What is kept of each position: `width` numbers of a type."""

    dtype: str
    width: int

    @property
    def num_bytes(self) -> int:
        """Of one position."""
        return np.dtype(NUMPY[self.dtype]).itemsize * self.width

    def empty(self, positions: int) -> NDArray[Any]:
        """Room for so many positions."""
        return np.empty((positions, self.width), NUMPY[self.dtype])

    def pack(self, values: Tensor) -> NDArray[Any]:
        """Numbers as they lie in the file."""
        values = values.detach().cpu()
        if self.dtype == "bf16":
            return values.to(torch.bfloat16).view(torch.int16).numpy()
        if self.dtype == "fp32":
            values = values.float()  # numpy knows no bf16
        return values.numpy().astype(NUMPY[self.dtype], copy=False)

    def unpack(self, stored: NDArray[Any]) -> Tensor:
        """Numbers as they are computed with: ids are int64."""
        if self.dtype == "bf16":
            return torch.from_numpy(stored).view(torch.bfloat16)
        return torch.from_numpy(stored if self.dtype == "fp32" else stored.astype(np.int64))

    def reserve(self, path: Path, positions: int) -> None:
        """Makes the file, or keeps it: `write` fills it in any order."""
        with open(path, "ab") as file:
            file.truncate(positions * self.num_bytes)

    def write(self, path: Path, start: int, stored: NDArray[Any]) -> None:
        """Puts positions from `start` on into the file and on disk."""
        with open(path, "r+b") as file:
            file.seek(start * self.num_bytes)
            file.write(np.ascontiguousarray(stored).data)
            file.flush()
            os.fsync(file.fileno())

    def map(self, path: Path, positions: int) -> NDArray[Any]:
        """The file as an array that is read only where it is looked at. Raises: OSError, ValueError (another size)."""
        if os.path.getsize(path) != positions * self.num_bytes:
            raise ValueError(f"{path} has {os.path.getsize(path)} bytes, not {positions} x {self.num_bytes}")
        if not positions:  # nothing can be mapped
            return self.empty(0)
        return np.asarray(np.memmap(path, NUMPY[self.dtype], "r", shape=(positions, self.width)))


def starts(tgt_len: NDArray[Any]) -> NDArray[np.int64]:
    """Where each row's positions begin, and at the end their number."""
    return np.concatenate(([0], np.cumsum(tgt_len, dtype=np.int64)))


def places(start_R: NDArray[Any], length_R: NDArray[Any]) -> NDArray[np.int64]:
    """start, start + 1, ... of every row, one row behind the other."""
    before_R = np.cumsum(length_R) - length_R
    return np.repeat(start_R - before_R, length_R) + np.arange(int(length_R.sum()))
