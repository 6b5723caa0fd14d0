"""Search by CTranslate2 in a directory that deploy/ctranslate2.py wrote: the duty of translate.py.

Batches are those of `plan_batches`; as many as there are threads are searched side by side, each by one thread, so
neither their number nor their timing changes a result. CTranslate2 knows one greatest length for a batch and ours is
each sentence's own: a batch is searched to the greatest of its sentences, and a sentence whose hypotheses do not all
end within its own limit is searched again to just that, with room for all beams beside those that ended before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.decoding.beam import BeamConfig, Hypothesis
from kdlab.decoding.translate import plan_batches
from kdlab.errors import UserError, import_extra
from kdlab.types import EOS_ID

QUEUED = 2  # batches handed over for each thread: it need not wait for us, and progress stays true


@dataclass(frozen=True)
class _Job:
    """Sentences that are searched together, by their positions."""

    sentences: list[int]
    max_length: int
    num_hypotheses: int
    patience: int = 1  # the search stops at so many times beam_size finished hypotheses


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

    def translate(
        self,
        src_ids: Sequence[Sequence[int]],
        config: BeamConfig,
        *,
        batch_tokens: int,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Hypothesis]]:
        """As `translate.translate`: hypotheses of every source (ids, EOS last), in the order of the sources.

        A source of EOS alone gets an empty hypothesis: CTranslate2 does not search it.
        """
        lengths = [len(ids) for ids in src_ids]
        for index, length in enumerate(lengths):
            if length > self.max_positions:
                raise UserError(
                    f"sentence {index + 1} has {length} tokens, but this model was built for at most "
                    f"{self.max_positions} (max_positions); split or drop it"
                )
        pieces = [[self.src_pieces[token] for token in ids[:-1]] for ids in src_ids]  # EOS is added there
        limits = [config.max_length(length, self.max_positions) for length in lengths]
        found: dict[int, list[Hypothesis]] = {}
        again: dict[int, list[int]] = {}  # sentences by their limit
        jobs = [
            _Job(batch, max(limits[at] for at in batch), config.n_best)
            for batch in plan_batches(lengths, batch_tokens=batch_tokens, beam_size=config.beam_size)
        ]
        for job, results in self._search(jobs, pieces, config):
            for at, hypotheses in zip(job.sentences, results, strict=True):
                if all(x.finished and len(x.ids) < limits[at] for x in hypotheses):
                    found[at] = hypotheses
                else:
                    again.setdefault(limits[at], []).append(at)
            if progress is not None:
                progress(sum(at in found for at in job.sentences))
        # At its limit fewer than beam_size have ended before, and at most beam_size stand beside them: none is lost.
        room = 2 if config.beam_size > 1 else 1
        jobs = [
            _Job([sentences[at] for at in batch], limit, room * config.beam_size, room)
            for limit, sentences in sorted(again.items())
            for batch in plan_batches(
                [lengths[at] for at in sentences], batch_tokens=batch_tokens, beam_size=config.beam_size
            )
        ]
        for job, results in self._search(jobs, pieces, config):
            for at, hypotheses in zip(job.sentences, results, strict=True):
                ended = [x for x in hypotheses if x.finished]
                found[at] = (ended or hypotheses)[: config.n_best]
            if progress is not None:
                progress(len(job.sentences))
        return [found[at] for at in range(len(src_ids))]

    def _search(
        self, jobs: Sequence[_Job], pieces: Sequence[list[str]], config: BeamConfig
    ) -> Iterator[tuple[_Job, list[list[Hypothesis]]]]:
        """Every job with its hypotheses, in order."""
        waiting: deque[tuple[_Job, Any]] = deque()
        for job in jobs:
            results = self.translator.translate_batch(
                [pieces[at] for at in job.sentences],
                asynchronous=True,
                beam_size=config.beam_size,
                num_hypotheses=job.num_hypotheses,
                patience=job.patience,
                length_penalty=config.length_penalty,
                max_input_length=0,  # it would cut longer sources silently
                max_decoding_length=job.max_length,
                return_scores=True,
                return_end_token=True,
            )
            waiting.append((job, results))
            if len(waiting) > QUEUED * self.threads:
                yield self._next(waiting, config)
        while waiting:
            yield self._next(waiting, config)

    def _next(self, waiting: deque[tuple[_Job, Any]], config: BeamConfig) -> tuple[_Job, list[list[Hypothesis]]]:
        job, results = waiting.popleft()
        return job, [self._hypotheses(result.result(), config) for result in results]

    def _hypotheses(self, result: Any, config: BeamConfig) -> list[Hypothesis]:
        found = []
        for pieces, score in zip(result.hypotheses, result.scores, strict=True):
            ids = [self.tgt_ids[piece] for piece in pieces]
            log_prob, finished = score * len(ids) ** config.length_penalty, ids[-1:] in ([], [EOS_ID])
            found.append(Hypothesis(ids[:-1] if finished else ids, score, log_prob, finished))
        return found
