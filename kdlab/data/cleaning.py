"""Rules that drop training pairs, each with its count and examples. Held-out sets are never cleaned.

A pair is counted under the first rule that it breaks, in this order:
    empty         a side without a visible character
    overlap       the pair, or a side of at least MIN_OVERLAP_BYTES bytes, equals a line of a valid or test set on that
                  side; shorter lines ("Thank you.") are common to all text and tell nothing about the held-out set
    duplicate     the same pair came before
    too_long      a side has more than max_tokens tokens
    length_ratio  the longer side has more than max_ratio times the tokens of the shorter
A line of source-only text (its target is None) meets the rules on its source alone, and is a duplicate where the same
source came before, with a target or without.
Tokens are subword tokens with EOS, the lengths that batches see. Equality is exact, over 64-bit hashes: among a hundred
million pairs the chance of a single false duplicate is 3e-4. Memory: about 16 bytes a pair, whatever its length, and as
much again for the sources where the corpus has source-only text.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from kdlab.errors import UserError

RULES = ("empty", "overlap", "duplicate", "too_long", "length_ratio")
MIN_OVERLAP_BYTES = 25  # of UTF-8: about five English or German words, eight Chinese characters
NUM_EXAMPLES = 3

Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]


@final
@dataclass(frozen=True)
class CleaningRules:
    """Which training pairs are kept; None or False switches a rule off."""

    max_tokens: int | None = 256
    max_ratio: float | None = 4.0
    drop_duplicates: bool = True
    drop_overlap: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UserError(f"max_tokens must be at least 2, got {self.max_tokens}: it counts EOS; write e.g. 256")
        if self.max_ratio is not None and self.max_ratio < 1:
            raise UserError(f"max_ratio must be at least 1, got {self.max_ratio}: no pair would be left; write e.g. 4")


def hash_lines(texts: list[str]) -> Hashes:
    """A stable 64-bit hash of every text (BLAKE2b); the same on every machine."""
    digests = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def hash_pairs(src: Hashes, tgt: Hashes) -> Hashes:
    """A hash of each pair, from the hashes of its sides; (a, b) and (b, a) differ."""
    return src * np.uint64(0x9E3779B97F4A7C15) + tgt  # modulo 2**64


@final
class HashSet:
    """64-bit hashes seen so far: open addressing in one numpy array, 11 to 21 bytes a hash."""

    def __init__(self) -> None:
        self._table: Hashes = np.zeros(1 << 12, np.uint64)
        self._count = 0

    def add(self, hashes: Hashes) -> Mask:
        """Adds the hashes; True where one was not there before (the first of equals within `hashes`)."""
        unique, first = np.unique(np.where(hashes == 0, np.uint64(1), hashes), return_index=True)  # 0 marks a free slot
        while self._count + len(unique) > 0.75 * len(self._table):
            old = self._table[self._table != 0]
            self._table = np.zeros(2 * len(self._table), np.uint64)
            for start in range(0, len(old), 1 << 16):
                self._insert(old[start : start + (1 << 16)])
        is_new = np.zeros(len(hashes), np.bool_)
        inserted = self._insert(unique)
        is_new[first[inserted]] = True
        self._count += int(inserted.sum())
        return is_new

    def _insert(self, unique: Hashes) -> Mask:
        mask = np.uint64(len(self._table) - 1)
        inserted = np.zeros(len(unique), np.bool_)
        waiting, slot = np.arange(len(unique)), unique & mask
        while len(waiting):
            free = self._table[slot] == 0
            self._table[slot[free]] = unique[waiting[free]]  # of several that want one slot, the last gets it
            placed = self._table[slot] == unique[waiting]
            inserted[waiting[placed & free]] = True
            waiting, slot = waiting[~placed], (slot[~placed] + np.uint64(1)) & mask
        return inserted


@final
class HeldOut:
    """Hashes of the valid and test lines that training must not contain."""

    def __init__(self, src: list[str], tgt: list[str]):
        self._src = np.sort(hash_lines([text for text in src if _is_telling(text)]))
        self._tgt = np.sort(hash_lines([text for text in tgt if _is_telling(text)]))
        self._pairs = np.sort(hash_pairs(hash_lines(src), hash_lines(tgt)))

    def overlaps(self, src: Hashes, tgt: Hashes) -> Mask:
        """Marks the pairs that the rule `overlap` drops."""
        return _isin(src, self._src) | _isin(tgt, self._tgt) | _isin(hash_pairs(src, tgt), self._pairs)


@final
class Cleaner:
    """The rules at work on a stream of batches, with what they dropped so far.

    source_only: whether there will be lines without target.
    """

    def __init__(self, rules: CleaningRules, held_out: HeldOut, *, source_only: bool = False):
        self._rules, self._held_out, self._seen = rules, held_out, HashSet()
        self._sources = HashSet() if source_only else None
        self.num_read = 0
        self.dropped: dict[str, int] = dict.fromkeys(RULES, 0)
        self.examples: dict[str, list[dict[str, Any]]] = {rule: [] for rule in RULES}

    def keep_text(self, row_id: NDArray[np.int64], src: list[str], tgt: list[str | None], src_hash: Hashes) -> Mask:
        """Which pairs pass the rules on text; every pair of the corpus comes by here once, in order."""
        self.num_read += len(src)
        text = [t or "" for t in tgt]
        tgt_hash = hash_lines(text)
        keep = np.ones(len(src), np.bool_)
        empty = [not s.strip() or (t is not None and not t.strip()) for s, t in zip(src, tgt, strict=True)]
        self._drop("empty", keep, np.array(empty, np.bool_), row_id, src, text)
        if self._rules.drop_overlap:
            self._drop("overlap", keep, self._held_out.overlaps(src_hash, tgt_hash), row_id, src, text)
        if self._rules.drop_duplicates:
            repeated = np.zeros(len(src), np.bool_)
            repeated[keep] = ~self._seen.add(hash_pairs(src_hash, tgt_hash)[keep])
            if self._sources is not None:
                alone = np.array([t is None for t in tgt], np.bool_)
                repeated[keep] |= alone[keep] & ~self._sources.add(src_hash[keep])
            self._drop("duplicate", keep, repeated, row_id, src, text)
        return keep

    def keep_tokens(
        self,
        row_id: NDArray[np.int64],
        src: list[str],
        tgt: list[str],
        src_len: NDArray[np.int32],
        tgt_len: NDArray[np.int32],
    ) -> Mask:
        """Which pairs pass the rules on lengths (in tokens, EOS included); `tgt_len` is 0 where there is no target."""
        keep = np.ones(len(src), np.bool_)
        tgt_len = np.where(tgt_len > 0, tgt_len, src_len)
        shorter, longer = np.minimum(src_len, tgt_len), np.maximum(src_len, tgt_len)
        self._drop("empty", keep, shorter < 2, row_id, src, tgt)  # nothing left after Unicode normalisation
        if self._rules.max_tokens is not None:
            self._drop("too_long", keep, longer > self._rules.max_tokens, row_id, src, tgt)
        if self._rules.max_ratio is not None:
            self._drop("length_ratio", keep, longer > self._rules.max_ratio * shorter, row_id, src, tgt)
        return keep

    def _drop(
        self, rule: str, keep: Mask, hit: Mask, row_id: NDArray[np.int64], src: list[str], tgt: list[str]
    ) -> None:
        hit = hit & keep
        self.dropped[rule] += int(hit.sum())
        for index in np.flatnonzero(hit)[: NUM_EXAMPLES - len(self.examples[rule])].tolist():
            shown = {"row_id": int(row_id[index]), "src": src[index][:200], "tgt": tgt[index][:200]}
            self.examples[rule].append(shown)
        keep &= ~hit


def _is_telling(text: str) -> bool:
    return len(text.encode()) >= MIN_OVERLAP_BYTES


def _isin(values: Hashes, ordered: Hashes) -> Mask:
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    near = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[near] == values
