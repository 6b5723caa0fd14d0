"""Which targets a source brings to an epoch: its gold reference, its pseudo-label, or both.

sampling: each epoch every row takes its gold with probability `mix`, else its pseudo-label; where it has one of the two
          alone, that one.
weights:  every row brings its gold and its pseudo-label, those that it has; the objective weighs them.
A row that has neither is left out of the epoch.

The draw of a row is a hash of (row_id, epoch, seed): it depends on no other row and on no order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdlab.errors import UserError

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Mixing:
    """Share of gold rows in [0, 1] and how gold and pseudo-labels are mixed."""

    mix: float = 1.0
    mix_by: Literal["sampling", "weights"] = "sampling"

    def __post_init__(self) -> None:
        if not 0.0 <= self.mix <= 1.0:
            raise UserError(f"mix must be in [0, 1], got {self.mix}: it is the share of gold rows; write e.g. mix=0.5")
        if self.mix_by not in ("sampling", "weights"):
            raise UserError(
                f"mix_by is {self.mix_by!r}: it says how gold and pseudo-labels are mixed; write sampling or weights"
            )

    def choose(self, row_id: np.ndarray, epoch: int, seed: int, has_label: np.ndarray) -> np.ndarray:
        """Marks the rows that train on their pseudo-label in this epoch, when mixing by sampling."""
        return has_label & (uniform(row_id, epoch, seed) >= self.mix)

    def targets(
        self,
        row_id: np.ndarray,
        epoch: int,
        seed: int,
        has_label: np.ndarray | None,
        has_gold: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(takes gold, takes pseudo) for every row of an epoch.

        `has_label` None: there are no pseudo-labels; `has_gold` None: every row has a gold target.
        """
        gold = np.ones(len(row_id), dtype=bool) if has_gold is None else np.asarray(has_gold, dtype=bool)
        if has_label is None:
            return gold, np.zeros(len(row_id), dtype=bool)
        if self.mix_by == "weights":
            return gold, np.asarray(has_label, dtype=bool)
        pseudo = self.choose(row_id, epoch, seed, has_label) | (has_label & ~gold)
        return gold & ~pseudo, pseudo


def uniform(row_id: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one a row, from SplitMix64 over (seed, epoch, row_id).

    Source: Steele, Lea, Flood 2014 (the finaliser); the upper 53 bits make a double.
    """
    stream = np.array([seed & MASK], dtype=np.uint64)
    stream = scrambled(scrambled(stream) ^ np.array([epoch & MASK], dtype=np.uint64))
    bits = scrambled(scrambled(np.asarray(row_id).astype(np.uint64)) ^ stream)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scrambled(bits: np.ndarray) -> np.ndarray:
    """SplitMix64 of an array (array arithmetic wraps silently, as it must)."""
    bits = bits + np.array([GOLDEN], dtype=np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.array([0xBF58476D1CE4E5B9], dtype=np.uint64)
    bits = (bits ^ (bits >> np.uint64(27))) * np.array([0x94D049BB133111EB], dtype=np.uint64)
    return bits ^ (bits >> np.uint64(31))
