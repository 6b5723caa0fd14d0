"""Noise on a student's sources: tokens dropped, replaced by <unk>, shuffled within a distance.

The draws of a token are a hash of (row_id, its position, epoch, seed): they depend on no other row, no order and no
microbatch. EOS stays where it is, and a source keeps at least one token before it.

Source: Lample et al. 2018 (Unsupervised Machine Translation Using Monolingual Corpora Only), section 2.3, there on
words, here on pieces; for the student alone as in Xie et al. 2020 (Noisy Student).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlab.data.mixing import scrambled, uniform
from kdlab.data.tokenizer import UNK_ID

SHUFFLE, DROP, MASK = range(3)  # independent draws of one token


@dataclass(frozen=True)
class SourceNoise:
    """How much noise: shares of tokens in [0, 1), and how far a token may move.

    Shuffling sorts by position + u * (swap_distance + 1), u uniform in [0, 1): no token moves more than swap_distance.
    """

    drop: float = 0.0
    mask: float = 0.0
    swap_distance: int = 0

    def __call__(self, src: list[np.ndarray], row_id: np.ndarray, epoch: int, seed: int) -> list[np.ndarray]:
        """New sources in place of these; ids with EOS at the end of each."""
        if not src:
            return []
        lengths = np.array([len(ids) - 1 for ids in src])
        row = np.repeat(np.arange(len(src)), lengths)
        position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = np.concatenate([ids[:-1] for ids in src])
        key = scrambled(scrambled(np.asarray(row_id)[row].astype(np.uint64)) + position.astype(np.uint64))

        def draw(what: int) -> np.ndarray:
            return uniform(key + np.uint64(what), epoch, seed)

        if self.mask:
            tokens = np.where(draw(MASK) < self.mask, np.int32(UNK_ID), tokens)
        kept = np.ones(len(row), dtype=bool)
        if self.drop:
            luck = draw(DROP)
            kept = luck >= self.drop
            best = np.lexsort((luck, row))[np.cumsum(lengths)[lengths > 0] - 1]  # the luckiest token of each source
            kept[best] = True
        place = position + (draw(SHUFFLE) * (self.swap_distance + 1) if self.swap_distance else 0)
        order = np.lexsort((place, row))
        order = order[kept[order]]
        ends = np.cumsum(np.bincount(row[kept], minlength=len(src)))
        pieces = np.split(tokens[order], ends[:-1])
        return [np.append(piece, ids[-1]).astype(np.int32) for piece, ids in zip(pieces, src, strict=True)]
