"""A teacher that was asked before: what it said at every target position of a corpus, read instead of computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdlab import files
from kdlab.errors import UserError
from kdlab.teachers.cache_files import CARD, Column, places, starts
from kdlab.types import Batch, Head, ModelOutput, Side, Split, TopK


class CachedTeacher:
    """Guides like a `FrozenTeacher`: for a batch it reads just the positions of its rows.

    hidden: the inputs of the teacher's head are kept, and the head makes the logits anew: exact at every temperature.
            The output of the decoder's last layer too where it was asked for, the only one that hidden terms can see.
    top_k:  the most likely tokens are kept, and the mass of all others at some temperatures.
    """

    num_layers: ClassVar[Mapping[str, int]] = {"encoder": 0, "decoder": 1}  # that hidden terms may see

    def __init__(self, folder: Path, head: Head, *, device: torch.device | str = "cpu", precision: str = "fp32"):
        """`precision`: of the product of hidden states and head, as a FrozenTeacher has it. See `open`."""
        card = files.read_json(folder / CARD)
        self._columns = {name: Column(**column) for name, column in card["columns"].items()}
        self._temperatures = tuple(float(temperature) for temperature in card["temperatures"] or ())
        self._last_layer: str | None = card.get("last_layer")
        self._parts = {part: _Part(folder, part, self._columns) for part in card["parts"]}
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        bias_V = None if head.bias_V is None else head.bias_V.detach().to(device)
        self._head = Head(head.weight_VD.detach().to(device, self.dtype), bias_V, head.pad_id)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        teacher: str,
        tokenizer: str,
        rows: Mapping[str, Iterable[NDArray[np.void]]],
        head: Head,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
    ) -> CachedTeacher:
        """The cache in a folder, after every row was compared.

        Args:
            teacher, tokenizer: SHA-256 of the teacher's weights and the tokenizer's fingerprint, as they are now.
            rows: who the rows of each part are now, in order, in pieces.
        Raises: UserError where it was made from anything else, or is damaged.
        """
        try:
            card = files.read_json(folder / CARD)
            made = cls(folder, head, device=device, precision=precision)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise _refusal(folder, f"cannot be read ({error})") from error
        for name, now in (("teacher", teacher), ("tokenizer", tokenizer)):
            if card[name] != now:
                raise _refusal(folder, f"was made with the {name} {card[name][:16]}, and this one is {now[:16]}")
        for part, pieces in rows.items():
            if part not in made._parts:
                raise _refusal(folder, f"has nothing on the {part} targets")
            made._parts[part].compare(pieces)
        return made

    @contextmanager
    def guide(
        self, batch: Batch, *, split: Split = "train", padded: bool = False
    ) -> Iterator[tuple[Side | TopK, ModelOutput | None]]:
        """What token terms compare with, and the last layer for hidden terms; there is nothing at padding."""
        if padded:
            raise ValueError("a cache holds real positions alone")
        read = self._read(batch, split)
        if "hidden" in read:
            last = (read[self._last_layer],) if self._last_layer else None
            yield Side(read["hidden"], self._head, self.dtype), last and ModelOutput(read["hidden"], (), last)
        else:
            log_probs, log_tails = read["log_probs"].float(), read["log_tails"].float()
            yield TopK(read["ids"], log_probs, log_tails, self._temperatures), None

    @property
    def d_model(self) -> int:
        """Width of its hidden states."""
        return self._head.weight_VD.shape[1]

    @property
    def has_last_layer(self) -> bool:
        """Whether hidden terms have something to compare with."""
        return self._last_layer is not None

    def _read(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """Every column at the real positions of the batch, row by row."""
        targets = batch.targets
        row_id_R = batch.row_id_B[targets.source_R].cpu().numpy()
        length_R = targets.mask_RT.sum(1).cpu().numpy()
        pseudo_R = targets.is_pseudo_R.cpu().numpy()
        start_R = starts(length_R)[:-1]
        read = {name: column.empty(int(length_R.sum())) for name, column in self._columns.items()}
        for part, rows in (("valid" if split == "valid" else "gold", ~pseudo_R), ("pseudo", pseudo_R)):
            if rows.any():
                to_N = places(start_R[rows], length_R[rows])
                from_N = self._parts[part].places(row_id_R[rows], length_R[rows])
                for name, stored in self._parts[part].columns.items():
                    read[name][to_N] = stored[from_N]
        device = batch.src_BS.device
        return {name: self._columns[name].unpack(stored).to(device) for name, stored in read.items()}


class _Part:
    """Gold targets, pseudo-labels or validation targets."""

    def __init__(self, folder: Path, name: str, columns: Mapping[str, Column]):
        self._folder, self._name = folder, name
        self._rows = np.load(folder / f"{name}.rows.npy", mmap_mode="r")
        self._row_id, self._tgt_len = (np.ascontiguousarray(self._rows[field]) for field in ("row_id", "tgt_len"))
        self._starts = starts(self._tgt_len)
        positions = int(self._starts[-1])
        self.columns = {column: kept.map(folder / f"{name}.{column}", positions) for column, kept in columns.items()}

    def places(self, row_id_R: NDArray[Any], length_R: NDArray[Any]) -> NDArray[np.int64]:
        """The positions of rows, one row behind the other."""
        at_R = np.searchsorted(self._row_id, row_id_R).clip(max=len(self._row_id) - 1)
        if (self._row_id[at_R] != row_id_R).any() or (self._tgt_len[at_R] != length_R).any():
            raise ValueError(f"the batch has {self._name} rows that are not those of the cache")
        return places(self._starts[at_R], length_R)

    def compare(self, pieces: Iterable[NDArray[np.void]]) -> None:
        """Raises: UserError where rows are not those that the cache was made from."""
        seen = 0
        for piece in pieces:
            ours = self._rows[seen : seen + len(piece)]
            if len(ours) == len(piece) and (differ := np.flatnonzero(ours != piece)).size:
                row = int(differ[0])
                fields = [field for field in piece.dtype.names or () if ours[row][field] != piece[row][field]]
                raise _refusal(
                    self._folder,
                    f"was made from other {self._name} targets: row {seen + row} (row id {piece[row]['row_id']}) "
                    f"differs in {', '.join(fields)}",
                )
            seen += len(piece)
        if seen != len(self._rows):
            raise _refusal(self._folder, f"has {len(self._rows)} {self._name} rows, the corpus {seen}")


def _refusal(folder: Path, problem: str) -> UserError:
    return UserError(
        f"the teacher cache in {folder} {problem}, so it would guide the student with another teacher's or another "
        "sentence's distribution; delete that folder and run the same command, which makes it again"
    )
