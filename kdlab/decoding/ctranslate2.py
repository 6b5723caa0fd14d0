"""Search by CTranslate2 in a directory that deploy/ctranslate2.py wrote.

As many batches as there are threads are searched side by side, each by one thread, so neither their number nor their
timing changes a result. CTranslate2 knows one greatest length for a batch and ours is each sentence's own: a batch is
searched to the greatest of its sentences, and a sentence whose hypotheses do not all end within its own limit is
searched again to just that, with room for all beams beside those that ended before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kdlab import files
from kdlab.decoding.beam import BeamConfig, Hypothesis
from kdlab.errors import UserError, import_extra
from kdlab.types import EOS_ID

Item = TypeVar("Item")
QUEUED = 2  # batches handed over for each thread: it need not wait for us, and progress stays true


@dataclass
class _Batch:
    """Sentences that are searched together; what `first` and `again` hold, CTranslate2 is still working on."""

    pieces: list[list[str]]
    limits: list[int]
    first: Any
    again: list[tuple[list[int], Any]] = field(default_factory=list)  # sentences of one limit each, by their positions
    found: dict[int, list[Hypothesis]] = field(default_factory=dict)


@dataclass(frozen=True)
class CTranslate2Model:
    """An exported model, ready to search."""

    translator: Any
    src_pieces: list[str]
    tgt_ids: dict[str, int]
    max_positions: int
    threads: int

    @classmethod
    def open(cls, folder: Path, *, device: str, threads: int) -> CTranslate2Model:
        """From an exported directory. Raises: UserError where it is none."""
        ctranslate2 = import_extra("ctranslate2", "ct2")
        try:
            max_positions = int(files.read_json(folder / "config.json")["max_positions"])
            shared = (folder / "shared_vocabulary.json").exists()
            names = ("shared", "shared") if shared else ("source", "target")
            src, tgt = (files.read_json(folder / f"{name}_vocabulary.json") for name in names)
            translator = ctranslate2.Translator(str(folder), device=device, inter_threads=threads, intra_threads=1)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{folder} is no CTranslate2 directory that kdlab has exported ({error}), so nothing can be decoded "
                "with it; export the model folder anew"
            ) from error
        return cls(translator, src, {piece: index for index, piece in enumerate(tgt)}, max_positions, threads)

    def search(self, batches: Iterable[Sequence[list[int]]], config: BeamConfig) -> Iterator[list[list[Hypothesis]]]:
        """Of every batch of sources (ids, EOS last), in order: the hypotheses of each source, best first.

        A source of EOS alone gets an empty hypothesis: CTranslate2 does not search it.
        """
        begun = _ahead((self._begin(batch, config) for batch in batches), QUEUED * self.threads)
        for batch in _ahead((self._begin_again(batch, config) for batch in begun), QUEUED * self.threads):
            for sentences, results in batch.again:
                for at, result in zip(sentences, results, strict=True):
                    hypotheses = self._hypotheses(result.result(), config)
                    batch.found[at] = ([x for x in hypotheses if x.finished] or hypotheses)[: config.n_best]
            yield [batch.found[at] for at in range(len(batch.limits))]

    def _begin(self, src_ids: Sequence[list[int]], config: BeamConfig) -> _Batch:
        limits = [config.max_length(len(ids), self.max_positions) for ids in src_ids]
        pieces = [[self.src_pieces[token] for token in ids[:-1]] for ids in src_ids]  # EOS is added there
        return _Batch(pieces, limits, self._submit(pieces, config, max(limits, default=1), config.n_best))

    def _begin_again(self, batch: _Batch, config: BeamConfig) -> _Batch:
        """Waits for the first search of the batch, and begins the second one of those that need it."""
        by_limit: dict[int, list[int]] = {}
        for at, (limit, result) in enumerate(zip(batch.limits, batch.first, strict=True)):
            hypotheses = self._hypotheses(result.result(), config)
            if all(x.finished and len(x.ids) < limit for x in hypotheses):
                batch.found[at] = hypotheses
            else:
                by_limit.setdefault(limit, []).append(at)
        # At its limit fewer than beam_size have ended before, and at most beam_size stand beside them: none is lost.
        room = 2 if config.beam_size > 1 else 1
        for limit, sentences in by_limit.items():
            pieces = [batch.pieces[at] for at in sentences]
            batch.again.append((sentences, self._submit(pieces, config, limit, room * config.beam_size, room)))
        return batch

    def _submit(
        self, pieces: list[list[str]], config: BeamConfig, max_length: int, num_hypotheses: int, patience: int = 1
    ) -> Any:
        """Hands sentences over; the search stops at beam_size * patience finished hypotheses of each."""
        return self.translator.translate_batch(
            pieces,
            asynchronous=True,
            beam_size=config.beam_size,
            num_hypotheses=num_hypotheses,
            patience=patience,
            length_penalty=config.length_penalty,
            max_input_length=0,  # it would cut longer sources silently
            max_decoding_length=max_length,
            return_scores=True,
            return_end_token=True,
        )

    def _hypotheses(self, result: Any, config: BeamConfig) -> list[Hypothesis]:
        found = []
        for pieces, score in zip(result.hypotheses, result.scores, strict=True):
            ids = [self.tgt_ids[piece] for piece in pieces]
            log_prob, finished = score * len(ids) ** config.length_penalty, ids[-1:] in ([], [EOS_ID])
            found.append(Hypothesis(ids[:-1] if finished else ids, score, log_prob, finished))
        return found


def _ahead(items: Iterable[Item], num_items: int) -> Iterator[Item]:
    """The items, each made when `num_items` others still wait to be taken."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > num_items:
            yield waiting.popleft()
    yield from waiting
