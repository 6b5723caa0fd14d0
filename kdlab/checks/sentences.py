"""A few short sentences with their pseudo-labels, held in memory: what the checks run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdlab.data.labels import PseudoLabels
from kdlab.data.prepared import Rows
from kdlab.errors import UserError

NUM_SENTENCES = 20
FROM_FIRST = 2000  # rows of the corpus


@dataclass(frozen=True)
class Sentences:
    """Rows with the face of data.prepared.Rows."""

    row_id: np.ndarray
    src: list[np.ndarray]
    tgt: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.src)

    @property
    def src_len(self) -> np.ndarray:
        return _lengths(self.src)

    @property
    def tgt_len(self) -> np.ndarray:
        return _lengths(self.tgt)

    def src_ids(self, index: np.ndarray) -> list[np.ndarray]:
        return [self.src[i] for i in index]

    def tgt_ids(self, index: np.ndarray) -> list[np.ndarray]:
        return [self.tgt[i] for i in index]


@dataclass(frozen=True)
class Labels:
    """Pseudo-labels of `Sentences` with the face of data.labels.PseudoLabels."""

    has_label: np.ndarray
    tgt: list[np.ndarray]  # empty where there is none

    @property
    def tgt_len(self) -> np.ndarray:
        return _lengths(self.tgt)

    def drawn(self, epoch: int, seed: int) -> Labels:
        return self

    def tgt_ids(self, index: np.ndarray) -> list[np.ndarray]:
        return [self.tgt[i] for i in index]


def choose(rows: Rows, labels: PseudoLabels | None) -> tuple[Sentences, Labels | None]:
    """Sentences of unequal lengths from the shorter half of the corpus's first rows, and their pseudo-labels.

    Rows with a label come first: half of a corpus may be without.
    """
    index = np.flatnonzero(rows.has_gold)[:FROM_FIRST]
    if not len(index):
        raise UserError(
            "no training row of the corpus has a target, so there is no sentence to check on; check with a corpus that "
            "has some (the objective is the same)"
        )
    if labels is not None and labels.has_label[index].sum() >= NUM_SENTENCES:
        index = index[labels.has_label[index]]
    order = index[np.argsort((rows.src_len + rows.tgt_len)[index], kind="stable")]
    order = order[: max(NUM_SENTENCES, len(order) // 2)]
    spread = np.unique(np.linspace(0, len(order) - 1, NUM_SENTENCES).round().astype(int))
    chosen = np.sort(order[spread])
    sentences = Sentences(np.asarray(rows.row_id)[chosen], rows.src_ids(chosen), rows.tgt_ids(chosen))
    if labels is None:
        return sentences, None
    nothing = np.empty(0, np.int32)
    has_label = labels.has_label[chosen]
    ids = [labels.tgt_ids(chosen[i : i + 1])[0] if has_label[i] else nothing for i in range(len(chosen))]
    return sentences, Labels(has_label, ids)


def stand_in(sentences: Sentences) -> Labels:
    """Labels where the teacher has made none: each sentence gets its neighbour's gold target."""
    return Labels(np.ones(len(sentences), np.bool_), [*sentences.tgt[1:], *sentences.tgt[:1]])


def _lengths(ids: Sequence[Any]) -> np.ndarray:
    return np.fromiter(map(len, ids), np.int32, len(ids))
