"""Epochs cut into optimizer steps, and steps into microbatches of padded tensors.

    epoch --cut_epoch--> steps (index arrays) --split_step--> microbatches (index arrays) --collate--> types.Batch

Which rows make a step is a function of (lengths, seed, epoch, tokens_per_step) alone. How a step is split, over
microbatches and over ranks, is a matter of memory and speed: the gradient is a sum over the step, so neither
`microbatch_tokens` nor the number of ranks changes a result but for dropout's draws. Every rank has equally many
microbatches, for each of them is a round of communication; one without rows keeps the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from kdlab.data.mixing import Mixing
from kdlab.data.noise import SourceNoise
from kdlab.data.subset import WHOLE, Subset
from kdlab.errors import UserError
from kdlab.types import Batch, Targets

# Rows are sorted within windows of so many steps (and at least so many rows): the more, the less padding.
WINDOW_STEPS = 256
WINDOW_ROWS = 8192
# bands = sqrt(BANDS_PER_PIECE * pieces): found by search on lognormal lengths, flat around 2
BANDS_PER_PIECE = 2.0


class StreamPosition(NamedTuple):
    """The next step that a stream gives."""

    epoch: int = 0
    step: int = 0


# (sources, their positions in the corpus) -> the sources as the student sees them
Change = Callable[[list[np.ndarray], np.ndarray], list[np.ndarray]]
GOLD_ALONE = Mixing(mix=1.0, mix_by="sampling")
BEGINNING = StreamPosition(epoch=0, step=0)


@dataclass(frozen=True)
class Lengths:
    """What the cutting must know of each row: an entry a source."""

    src: np.ndarray  # source tokens
    tgt: np.ndarray  # tokens of its longest target
    num_targets: np.ndarray  # how many targets it brings (2 with gold and pseudo-label)
    tokens: np.ndarray  # tokens of all its targets: these count for tokens_per_step

    @classmethod
    def of(
        cls, src: np.ndarray, gold: np.ndarray, pseudo: np.ndarray, takes_gold: np.ndarray, takes_pseudo: np.ndarray
    ) -> Lengths:
        """From the lengths of both targets and the marks which of them each row brings."""
        gold, pseudo = gold * takes_gold, pseudo * takes_pseudo
        num_targets = takes_gold.astype(np.int64) + takes_pseudo
        return cls(src, np.maximum(gold, pseudo), num_targets, gold.astype(np.int64) + pseudo)

    @classmethod
    def of_gold(cls, src: np.ndarray, tgt: np.ndarray) -> Lengths:
        """With one target a source."""
        return cls(src, tgt, np.ones(len(src), dtype=np.int64), tgt.astype(np.int64))

    def take(self, index: np.ndarray) -> Lengths:
        return Lengths(self.src[index], self.tgt[index], self.num_targets[index], self.tokens[index])

    def padded(self) -> int:
        """Tokens that these rows fill as one batch: B * S + R * T."""
        return len(self.src) * int(self.src.max()) + int(self.num_targets.sum()) * int(self.tgt.max())

    def real(self) -> int:
        """Tokens of both sides without padding."""
        return int(self.src.sum() + self.tokens.sum())


@dataclass(frozen=True)
class Epoch:
    """One pass over the rows: which targets they bring and the steps they are cut into."""

    takes_gold: np.ndarray
    takes_pseudo: np.ndarray
    lengths: Lengths
    steps: list[np.ndarray]
    labels: Any = None  # of each row the one label of this epoch; None: gold alone
    number: int = 0


def padding_ratio(lengths: Lengths, pieces: Iterable[np.ndarray]) -> float:
    """Real tokens over padded tokens of both sides, each piece being one batch."""
    taken = [lengths.take(piece) for piece in pieces]
    return sum(part.real() for part in taken) / sum(part.padded() for part in taken)


def snake_order(lengths: Lengths, num_pieces: float, phase: float = 0.0) -> np.ndarray:
    """An order in which every contiguous piece is nearly of one length, on both sides.

    Sorting by target length alone leaves the sources badly padded. So: bands of target length that hold equally many
    tokens, and within each the sources up in one band and down in the next. `phase` in [0, 1) shifts the bands' edges,
    so that other rows meet in each epoch.
    """
    num_bands = max(1, round((BANDS_PER_PIECE * num_pieces) ** 0.5))
    by_target = np.argsort(lengths.tgt, kind="stable")
    share = np.cumsum(lengths.tokens[by_target], dtype=np.float64)
    band = np.empty(len(by_target), dtype=np.int64)
    band[by_target] = share * (num_bands / share[-1]) * (1 - 1e-9) + phase
    return np.lexsort((lengths.tgt, np.where(band % 2 == 0, lengths.src, -lengths.src), band))


def cut_epoch(lengths: Lengths, *, tokens_per_step: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The steps of one epoch in their order; every row is in exactly one of them.

    A step holds at most `tokens_per_step` target tokens; a single row with more of them is a step of its own. What is
    left at the end of a window goes into the next one, and the last window is cut evenly, so that no step is tiny.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(len(lengths.src))
    mean = float(lengths.tokens.mean())
    window = max(WINDOW_ROWS, round(WINDOW_STEPS * tokens_per_step / mean))
    steps: list[np.ndarray] = []
    rest = order[:0]
    for start in range(0, len(order), window):
        rows = np.concatenate((rest, order[start : start + window]))
        taken = lengths.take(rows)
        sorting = snake_order(taken, taken.tokens.sum() / tokens_per_step, phase=generator.random())
        if len(steps) and generator.random() < 0.5:  # so that not always the longest rows are left for the next window
            sorting = sorting[::-1]
        rows, ends = rows[sorting], np.cumsum(taken.tokens[sorting])
        is_last = start + window >= len(order)
        cut = partial(_cut, ends)
        cuts = _evenly(cut, tokens_per_step) if is_last else cut(tokens_per_step)
        pieces = np.split(rows, cuts[:-1])
        rest = rows[:0] if is_last else pieces.pop()
        steps += pieces
    return [steps[i] for i in generator.permutation(len(steps))]


def split_step(lengths: Lengths, step: np.ndarray, microbatch_tokens: int, num_ranks: int = 1) -> list[np.ndarray]:
    """The microbatches of a step: at most `microbatch_tokens` padded tokens of both sides, or a single row.

    Rank r takes every `num_ranks`-th from r on; there are equally many for each, of nearly one size, some of them
    without rows where a step has too few.
    """
    taken = lengths.take(step)
    padded = taken.padded()
    if num_ranks == 1 and padded <= microbatch_tokens:
        return [step]
    sorting = snake_order(taken, max(num_ranks, padded / microbatch_tokens))
    taken = taken.take(sorting)
    cuts = _evenly(partial(_cut_padded, taken), min(microbatch_tokens, padded), num_ranks)
    pieces = np.split(step[sorting], cuts[:-1])
    return pieces + [step[:0]] * (-len(pieces) % num_ranks)


def _cut(ends: np.ndarray, limit: float) -> list[int]:
    """Where greedy pieces of at most `limit` tokens end, given the running sum of tokens."""
    cuts = [0]
    while cuts[-1] < len(ends):
        begin = cuts[-1]
        before = ends[begin - 1] if begin else 0
        cuts.append(max(begin + 1, int(ends.searchsorted(before + limit, side="right"))))
    return cuts[1:]


def _cut_padded(lengths: Lengths, limit: float) -> list[int]:
    """Where greedy pieces of at most `limit` padded tokens of both sides end."""
    cuts = [0]
    while cuts[-1] < len(lengths.src):
        # a row has at least one source token, so no piece has more rows than `limit`
        part = slice(cuts[-1], cuts[-1] + int(limit) + 1)
        src, tgt = np.maximum.accumulate(lengths.src[part]), np.maximum.accumulate(lengths.tgt[part])
        filled = np.arange(1, len(src) + 1) * src + np.cumsum(lengths.num_targets[part]) * tgt
        cuts.append(cuts[-1] + max(1, int(filled.searchsorted(limit, side="right"))))
    return cuts[1:]


def _evenly(cut: Callable[[float], list[int]], limit: float, multiple: int = 1) -> list[int]:
    """The cut of about the smallest limit that needs no more pieces than `limit` does: no tiny last piece.

    multiple: that many pieces are as good as fewer, up to its next multiple.
    """
    best = cut(limit)
    most = -(-len(best) // multiple) * multiple
    low, high = 0.0, limit
    while high - low > 0.1 * limit / most:
        middle = (low + high) / 2
        cuts = cut(middle)
        if len(cuts) <= most:
            best, high = cuts, middle
        else:
            low = middle
    return best


def _padded(ids: list[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(matrix, mask) of ragged ids, at least one column wide; the mask comes from lengths."""
    lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    matrix = np.full(mask.shape, pad_id, dtype=np.int64)
    if ids:
        matrix[mask] = np.concatenate(ids)
    return torch.from_numpy(matrix), torch.from_numpy(mask)


def collate(
    rows: Any,
    index: np.ndarray,
    *,
    src_pad_id: int,
    tgt_pad_id: int,
    labels: Any = None,
    takes_gold: np.ndarray | None = None,
    takes_pseudo: np.ndarray | None = None,
    change: Change | None = None,
) -> Batch:
    """One microbatch. `takes_gold`, `takes_pseudo`: marks over the whole corpus, by default gold alone.

    The target rows are all golds in the order of their sources, then all pseudo-labels. `change` makes the student's
    sources of those of the corpus.
    """
    gold = np.arange(len(index)) if takes_gold is None else np.flatnonzero(takes_gold[index])
    pseudo = np.flatnonzero(takes_pseudo[index]) if takes_pseudo is not None else gold[:0]
    clean = rows.src_ids(index)
    src, src_mask = _padded(clean if change is None else change(clean, index), src_pad_id)
    clean_src, clean_mask = (None, None) if change is None else _padded(clean, src_pad_id)
    ids = list(rows.tgt_ids(index[gold])) if len(gold) else []
    if len(pseudo):
        ids += labels.tgt_ids(index[pseudo])
    tgt_out, mask = _padded(ids, tgt_pad_id)
    tgt_in = torch.full_like(tgt_out, tgt_pad_id)
    tgt_in[:, 1:] = tgt_out[:, :-1].where(mask[:, 1:], tgt_pad_id)
    targets = Targets(
        source_R=torch.from_numpy(np.concatenate((gold, pseudo)).astype(np.int64)),
        is_pseudo_R=torch.arange(len(ids)) >= len(gold),
        tgt_in_RT=tgt_in,
        tgt_out_RT=tgt_out,
        mask_RT=mask,
    )
    row_id = torch.from_numpy(np.asarray(rows.row_id)[index].astype(np.int64))
    return Batch(row_id, src, src_mask, targets, clean_src, clean_mask)


@dataclass(frozen=True)
class StepStream:
    """All optimizer steps from `start` on, without end: (position after the step, its microbatches).

    A stream that starts at a position gives exactly what one from the beginning gives after it. The streams of all
    ranks share each step between them. Tags: Caswell et al. 2019 (tagged back-translation), here on the sources of
    pseudo-labels.
    Units: tokens_per_step counts real target tokens, microbatch_tokens padded tokens of both sides.
    """

    rows: Any  # data.prepared.Rows
    seed: int
    tokens_per_step: int
    microbatch_tokens: int
    src_pad_id: int
    tgt_pad_id: int
    labels: Any = None  # data.labels.PseudoLabels; None: gold alone
    mixing: Mixing = GOLD_ALONE
    subset: Subset = WHOLE
    reads_gold: bool = True  # whether a term looks at gold targets; else rows with a label alone are trained on
    tag_id: int | None = None  # stands before the sources of pseudo-labels
    noise: SourceNoise | None = None  # on the student's sources
    start: StreamPosition = BEGINNING
    rank: int = 0
    num_ranks: int = 1

    def epoch(self, number: int) -> Epoch:
        """The plan of one epoch."""
        if not len(self.rows):
            raise UserError(
                "the training corpus has 0 rows: there is nothing to train on; "
                "loosen data.cleaning or check the files of data.train"
            )
        gold, pseudo = self.targets(number)
        gold_len = np.asarray(self.rows.tgt_len)
        labels = None if self.labels is None else self.labels.drawn(number, self.seed)
        pseudo_len = np.zeros_like(gold_len) if labels is None else np.asarray(labels.tgt_len)
        lengths = Lengths.of(np.asarray(self.rows.src_len), gold_len, pseudo_len, gold, pseudo)
        steps = self._steps(lengths, number)
        if self.tag_id is not None:  # a matter of memory alone: the rows of a step are the same without a tag
            lengths = replace(lengths, src=lengths.src + pseudo)
        return Epoch(gold, pseudo, lengths, steps, labels, number)

    def targets(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(takes gold, takes pseudo) for every row in an epoch."""
        has_gold, has_label = self.usable
        return self.mixing.targets(np.asarray(self.rows.row_id), number, self.seed, has_label, has_gold)

    @cached_property
    def usable(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Marks of the gold targets and of the pseudo-labels that may be used; None where there are no labels."""
        row_id = np.asarray(self.rows.row_id)
        gold = self.subset.gold(row_id, np.asarray(self.rows.tgt_len) > 0)
        if self.labels is None:
            return gold, None
        pseudo = self.subset.pseudo(row_id, np.asarray(self.labels.has_label))
        # A teacher that has learnt nothing may leave no label at all; then there is nothing else to step over.
        return gold & (self.reads_gold or not pseudo.any()), pseudo

    def _steps(self, lengths: Lengths, number: int) -> list[np.ndarray]:
        """The steps of an epoch over the rows that bring a target to it."""
        cut = partial(cut_epoch, tokens_per_step=self.tokens_per_step, seed=self.seed, epoch=number)
        brings = np.flatnonzero(lengths.num_targets)
        if len(brings) == len(lengths.num_targets):
            return cut(lengths)
        if not len(brings):
            raise UserError(
                f"none of the {len(self.rows):,} training rows has a target that this training may use, so there is "
                "nothing to train on; add text with targets to data.train, or choose a recipe with pseudo-labels"
            )
        return [brings[step] for step in cut(lengths.take(brings))]

    def microbatches(self, epoch: Epoch, step: int) -> list[Batch]:
        """The tensors of one step: this rank's share."""
        pieces = split_step(epoch.lengths, epoch.steps[step], self.microbatch_tokens, self.num_ranks)
        return [
            collate(
                self.rows,
                index,
                src_pad_id=self.src_pad_id,
                tgt_pad_id=self.tgt_pad_id,
                labels=epoch.labels,
                takes_gold=epoch.takes_gold,
                takes_pseudo=epoch.takes_pseudo,
                change=None if self.tag_id is None and self.noise is None else partial(self._changed, epoch),
            )
            for index in pieces[self.rank :: self.num_ranks]
        ]

    def _changed(self, epoch: Epoch, src: list[np.ndarray], index: np.ndarray) -> list[np.ndarray]:
        """The sources as the student sees them in an epoch: noise on all, the tag before those of pseudo-labels."""
        if self.noise is not None:
            src = self.noise(src, np.asarray(self.rows.row_id)[index], epoch.number, self.seed)
        if self.tag_id is None:
            return src
        pseudo = epoch.takes_pseudo[index]
        if (pseudo & epoch.takes_gold[index]).any():
            raise ValueError("a source that is encoded once for gold and pseudo-label can have no tag")
        tag = np.array([self.tag_id], dtype=np.int32)
        return [np.concatenate((tag, ids)) if tagged else ids for ids, tagged in zip(src, pseudo, strict=True)]

    def __iter__(self) -> Iterator[tuple[StreamPosition, list[Batch]]]:
        number, first = self.start
        while True:
            epoch = self.epoch(number)
            if not 0 <= first < len(epoch.steps):
                raise ValueError(f"epoch {number} has {len(epoch.steps)} steps, cannot start at step {first}")
            for step in range(first, len(epoch.steps)):
                is_last = step + 1 == len(epoch.steps)
                after = StreamPosition(number + 1, 0) if is_last else StreamPosition(number, step + 1)
                yield after, self.microbatches(epoch, step)
            number, first = number + 1, 0


def evaluation_batches(
    rows: Any, *, microbatch_tokens: int, src_pad_id: int, tgt_pad_id: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """All rows once with their gold targets, in a fixed order by length; of several ranks each gets its share."""
    if not len(rows):
        return
    lengths = Lengths.of_gold(np.asarray(rows.src_len), np.asarray(rows.tgt_len))
    pieces = split_step(lengths, np.arange(len(rows)), microbatch_tokens, num_ranks)
    for index in pieces[rank::num_ranks]:
        yield collate(rows, index, src_pad_id=src_pad_id, tgt_pad_id=tgt_pad_id)
