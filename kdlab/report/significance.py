"""Paired bootstrap resampling of two systems on one test set, with the p-value that the command of sacreBLEU prints.

Resampled are the per-sentence statistics that evaluate_model has stored: counts, of whose sums a score is a function.
Source: Koehn 2004; `sacrebleu --paired-bs` (sacrebleu/significance.py: 1,000 samples, seed 12345, two-sided).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import files

if TYPE_CHECKING:
    import numpy as np

SAMPLES, SEED = 1000, 12345
Load = Callable[[], Sequence[Sequence[int]]]  # gives the counts of every sentence
IGNORED = ("nrefs:", "version:")  # parts of a signature that say nothing of how a score follows from statistics


@dataclass(frozen=True)
class Contrast:
    """What resampling says of a difference: two-sided p, and where 95 % of the samples lie (BLEU).

    `seeds`: whose translations were resampled, where not all trainings' are known; else empty.
    """

    p_value: float
    low: float
    high: float
    seeds: tuple[int, ...] = ()


class Significance:
    """p-values by the content of the two files of statistics; those of earlier reports are remembered in `cache`."""

    def __init__(self, cache: Path):
        self._cache = cache
        self._known: dict[str, float] = _read(cache)
        self._new = False
        self._hashes: dict[Path, str] = {}
        self._scores: dict[tuple[str, ...], tuple[float, np.ndarray]] = {}
        self._counts: dict[int, np.ndarray] = {}

    def p_value(self, baseline: Path, system: Path, metric: str, signature: str) -> float | None:
        """Of the difference of two systems' corpus scores; None where the statistics do not belong to `signature`.

        Args:
            baseline, system: <test>.statistics.json of the two, of the same sentences.
            metric: bleu or chrf.
        """
        import sacrebleu

        parts = (self._hash(baseline), self._hash(system), metric, signature, sacrebleu.__version__)
        name = " ".join(parts)
        if name not in self._known:
            scorer = _scorer(metric)
            if _essence(str(scorer.get_signature())) != _essence(signature):
                return None  # scored with other settings than ours: their formula is not known here
            (lower, below), (upper, above) = (
                self._resampled(metric, scorer, {self._hash(one): partial(_of_file, one, metric)})
                for one in (baseline, system)
            )
            self._known[name] = _p_value(upper - lower, above - below)
            self._new = True
        return self._known[name]

    def contrast(
        self, terms: Sequence[tuple[float, Mapping[str, Load]]], metric: str, signature: str
    ) -> Contrast | None:
        """Of a weighted sum of scores, each of several trainings; None where statistics do not belong to `signature`.

        The counts of a sentence are summed over the trainings, so that an arm's score is that of all its translations
        read as one text, and every sample draws whole sentences: one draw serves every arm and every training. That is
        right because the trainings of an arm translate the same sentences. To draw from trainings x sentences, or to
        multiply the p-values of single seeds, would count each sentence as often as there are trainings, and take one
        easy or odd sentence for that much evidence. With one training on both sides it is `p_value`.

        It does not cover the spread over trainings: seeds are taken as they are, so a small p says that other
        sentences would not turn the difference round, never that other seeds would not. Their standard deviation does.

        Args:
            terms: weight of an arm, and what loads the counts of each of its trainings, by a name of that training and
                test set; all of the same sentences.
        """
        import numpy as np

        scorer = _scorer(metric)
        if _essence(str(scorer.get_signature())) != _essence(signature):
            return None
        found = [(weight, *self._resampled(metric, scorer, trainings)) for weight, trainings in terms]
        real = sum(weight * score for weight, score, _ in found)
        samples = np.sum([weight * scores for weight, _, scores in found], axis=0)
        low, high = np.percentile(samples, [2.5, 97.5])
        return Contrast(_p_value(real, samples), float(low), float(high))

    def save(self) -> None:
        """Keeps what was computed; a store that cannot be written only costs time."""
        if self._new:
            with contextlib.suppress(OSError):
                files.write_json(self._cache, {**_read(self._cache), **self._known})

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = files.sha256_file(path)[:24]
        return self._hashes[path]

    def _resampled(self, metric: str, scorer: Any, trainings: Mapping[str, Load]) -> tuple[float, np.ndarray]:
        """The score of one training, or of several read as one text, and the scores of all samples."""
        import numpy as np

        if (place := (metric, *trainings)) not in self._scores:
            statistics = np.sum([np.array(load(), dtype="float64") for load in trainings.values()], axis=0)
            # Sums of whole numbers below 2**24: exact in any order, and so in sacreBLEU's float32 too.
            sums = (self._drawn(len(statistics)) @ statistics).astype("float32")
            scores = np.array([scorer._compute_score_from_stats(one).score for one in sums])
            # sacreBLEU sums the statistics themselves as Python's whole numbers
            total = [int(count) for count in statistics.sum(0)]
            self._scores[place] = (float(scorer._compute_score_from_stats(total).score), scores)
        return self._scores[place]

    def _drawn(self, sentences: int) -> np.ndarray:
        """How often each sample holds each sentence: (SAMPLES, sentences), sacreBLEU's own draws."""
        import numpy as np

        if sentences not in self._counts:
            drawn = np.random.default_rng(SEED).choice(sentences, size=(SAMPLES, sentences), replace=True)
            self._counts[sentences] = np.stack([np.bincount(one, minlength=sentences) for one in drawn]).astype("f8")
        return self._counts[sentences]


def _of_file(path: Path, metric: str) -> list[list[int]]:
    found: list[list[int]] = files.read_json(path)[metric]
    return found


def _p_value(difference: float, resampled: np.ndarray) -> float:
    """Share of samples whose centred difference exceeds the real one, one more on both sides of the division."""
    import numpy as np

    differences = np.abs(resampled)
    beyond = int(np.sum(differences - differences.mean() > abs(difference)))
    return (beyond + 1) / (SAMPLES + 1)


def _scorer(metric: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    scorer = {"bleu": BLEU, "chrf": CHRF}[metric]()
    scorer.num_refs = 1  # else it has no signature before it has scored
    return scorer


def _essence(signature: str) -> list[str]:
    return sorted(part for part in signature.split("|") if not part.startswith(IGNORED))


def _read(cache: Path) -> dict[str, float]:
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
