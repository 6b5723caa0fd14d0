"""The low-data regime: a share of the gold targets, a share of the pseudo-labels, nested and drawn by a seed.

A row's rank is a hash of (row_id, seed), the same for gold and pseudo-labels: of the rows that have a target the first
round(share * rows) in this order are used. So the rows of 1 % are among those of 5 %, and equal shares of gold and
pseudo-labels are the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlab.data.mixing import uniform
from kdlab.errors import UserError

NO_EPOCH = -1  # in place of an epoch's number: ranks are no draw of any epoch, also where both have one seed


@dataclass(frozen=True)
class Subset:
    """Shares in (0, 1] of the gold targets and of the pseudo-labels, and the seed that ranks rows."""

    gold_share: float = 1.0
    pseudo_share: float = 1.0
    seed: int = 1

    def gold(self, row_id: np.ndarray, has_gold: np.ndarray) -> np.ndarray:
        """Marks the rows whose gold target may be used."""
        return self._first(row_id, has_gold, "gold_share", self.gold_share)

    def pseudo(self, row_id: np.ndarray, has_label: np.ndarray) -> np.ndarray:
        """Marks the rows whose pseudo-label may be used."""
        return self._first(row_id, has_label, "pseudo_share", self.pseudo_share)

    def _first(self, row_id: np.ndarray, available: np.ndarray, name: str, share: float) -> np.ndarray:
        if not 0.0 < share <= 1.0:
            raise UserError(f"{name} must be in (0, 1], got {share}: it is a share of the rows; write e.g. 0.05")
        there = np.flatnonzero(available)
        if share == 1.0 or not len(there):
            return available
        count = round(share * len(there))
        if not count:
            raise UserError(
                f"{name}={share} of {len(there):,} rows is none: there is nothing to learn from; write a larger share"
            )
        order = np.argsort(uniform(np.asarray(row_id)[there], NO_EPOCH, self.seed), kind="stable")
        chosen = np.zeros(len(available), dtype=bool)
        chosen[there[order[:count]]] = True
        return chosen


WHOLE = Subset()
