"""The shards of a decoding plan, taken by any number of processes: each under a lease, so that one works on it.

Leases save double work, correctness does not hang on them: two workers of one shard write files of their own and bring
the same rows.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from kdlab import files, runtime
from kdlab.data.shards import Shards, ShardWriter

POLL_S = 1.0  # between two looks whether others have finished, or died


@final
@dataclass(frozen=True)
class Taken:
    """A shard that we work on."""

    number: int
    lease: files.Lease
    writer: ShardWriter


@final
class SharedWork:
    """Our part in the work, with the progress of all; `with` gives back what is not finished."""

    def __init__(self, shards: Shards, locks: Path, first: dict[str, Any]):
        """`locks`: a folder that exists. `first`: for the first line of every shard's file."""
        self._shards, self._locks, self._first = shards, locks, first
        plan, self._src_len = shards.plan, shards.corpus.src_len
        self._tokens = [int(self._src_len[plan.shard_rows(number)].sum()) for number in range(plan.num_shards)]
        self._held: dict[int, Taken] = {}
        # Tokens, and not rows: long sentences come first, and a time left that counts rows would be far too long.
        self._shown = runtime.bar(
            what="hypotheses", total=sum(self._tokens), unit="source tokens", initial=self._done(), smoothing=0
        )

    def wait(self) -> Taken | None:
        """The next shard; waits while all that are left are in the hands of others; None when all are finished."""
        while (taken := self.take()) is None:
            if len(self._look()) == self._shards.plan.num_shards:
                return None
            time.sleep(POLL_S)
        return taken

    def take(self) -> Taken | None:
        """The first shard that is neither finished nor in the hands of a living process."""
        finished = self._look()
        for number in range(self._shards.plan.num_shards):
            if number in finished or number in self._held:
                continue
            lease = files.Lease(self._locks / str(number))
            if lease.try_acquire() is not None:
                continue
            if self._shards.path(number).exists():  # since we looked
                lease.release(forget=True)
                continue
            try:
                writer = self._shards.worker(number, lease.owner.id, self._first)
            except BaseException:
                lease.release()
                raise
            taken = self._held[number] = Taken(number, lease, writer)
            if writer.left:
                return taken
            self._finish(taken)  # killed between its last row and its renaming
        return None

    def write(self, taken: Taken, batch: int, rows: list[dict[str, Any]], note: dict[str, Any]) -> None:
        """Adds a batch to a shard, and finishes the shard with its last one."""
        if self._held.get(taken.number) is not taken:
            return
        if taken.lease.lost:  # another process took us for dead, and brings the same rows
            del self._held[taken.number]
            taken.writer.close()
            return
        taken.writer.write(batch, rows, note)
        self._shown.update(int(self._src_len[self._shards.plan.rows(batch)].sum()))
        if not taken.writer.left:
            self._finish(taken)

    def __enter__(self) -> SharedWork:
        return self

    def __exit__(self, *exception: object) -> None:
        self._shown.close()
        for taken in self._held.values():
            taken.writer.close()
            taken.lease.release()
        self._held.clear()

    def _finish(self, taken: Taken) -> None:
        with contextlib.suppress(FileNotFoundError):  # taken over, or merged already
            taken.writer.finish()
        del self._held[taken.number]
        taken.lease.release(forget=True)

    def _look(self) -> set[int]:
        finished = self._shards.finished()
        self._shown.update(max(0, self._done(finished) - self._shown.n))
        return finished

    def _done(self, finished: set[int] | None = None) -> int:
        """Source tokens of finished shards and of what we have written in others."""
        plan = self._shards.plan
        done = sum(self._tokens[number] for number in (self._shards.finished() if finished is None else finished))
        for number, taken in self._held.items():
            at = plan.batch_start[plan.batches(number).start], plan.batch_start[taken.writer.left.start]
            done += int(self._src_len[plan.order[at[0] : at[1]]].sum())
        return done
