"""The order in which a corpus is decoded, cut into batches and shards before anyone knows who decodes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from kdlab.errors import UserError

SHARD_ROWS = 2048  # a shard begins with the first batch at or behind every so many rows


@final
@dataclass(frozen=True)
class DecodePlan:
    """Corpus rows by falling source length (ties by position), in batches; a shard is a run of whole batches.

    A function of the corpus, the token budget and the width alone: batches decide the last bits of scores, so nothing
    about processes may enter. About 8 bytes a row.
    """

    order: NDArray[np.int32]  # positions of the corpus rows
    batch_start: NDArray[np.int64]  # in `order`; one entry more than there are batches
    shard_start: NDArray[np.int64]  # in `batch_start`; one entry more than there are shards

    @classmethod
    def make(cls, lengths: NDArray[np.int32], *, batch_tokens: int, width: int) -> DecodePlan:
        """The plan of a corpus.

        Args:
            lengths: of the sources in tokens.
            width: rows that a source takes in a batch, e.g. the beams: a batch holds as many sources as keep
                sources * width * (its longest length) within `batch_tokens`, at least one.
        """
        if batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}, but a batch must hold a token; write e.g. 4096")
        longest = int(lengths.max(initial=0))
        falling = (longest - lengths).astype(np.min_scalar_type(longest))  # 16 bits are sorted much faster
        order = np.argsort(falling, kind="stable").astype(np.int32)
        starts = [0]
        while starts[-1] < len(order):
            length = max(1, int(lengths[order[starts[-1]]]))
            starts.append(min(len(order), starts[-1] + max(1, batch_tokens // (width * length))))
        batch_start = np.array(starts, np.int64)
        shards = np.unique(np.searchsorted(batch_start, np.arange(0, len(order), SHARD_ROWS)))
        last = len(starts) - 1
        return cls(order, batch_start, np.append(shards[shards < last], last).astype(np.int64))

    @property
    def num_batches(self) -> int:
        return len(self.batch_start) - 1

    @property
    def num_shards(self) -> int:
        return len(self.shard_start) - 1

    def batches(self, shard: int) -> range:
        """The numbers of a shard's batches."""
        return range(int(self.shard_start[shard]), int(self.shard_start[shard + 1]))

    def rows(self, batch: int) -> NDArray[np.int32]:
        """The positions of a batch's rows in the corpus, in the order of decoding."""
        return self.order[self.batch_start[batch] : self.batch_start[batch + 1]]

    def shard_rows(self, shard: int) -> NDArray[np.int32]:
        """As `rows`, of a whole shard."""
        batches = self.batches(shard)
        return self.order[self.batch_start[batches.start] : self.batch_start[batches.stop]]

    def fingerprint(self) -> str:
        """16 hex that tell this plan from another."""
        digest = hashlib.sha256()
        for array in (self.order, self.batch_start, self.shard_start):
            digest.update(array.data)
        return digest.hexdigest()[:16]
