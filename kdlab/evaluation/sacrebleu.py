"""BLEU and chrF by sacreBLEU, of a corpus and of a sentence, with the signature that makes a score comparable.

Both on 0-100. BLEU: sacreBLEU's defaults (13a tokenisation, exponential smoothing, case kept), of a sentence over the
orders of n-grams that it is long enough for. chrF: chrF2.
Source: Papineni et al. 2002; Popovic 2015; Post 2018 (signatures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from kdlab.errors import UserError, did_you_mean

METRICS = ("bleu", "chrf")


def score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, Any]]:
    """By metric: `score`, `signature` and `statistics`.

    Args:
        references: `references[k][i]` is reference k of sentence i.
    Returns:
        `statistics` has one list of whole numbers per sentence whose sums determine the score, for resampling.
    """
    for index, reference in enumerate(references):
        if len(reference) != len(hypotheses):
            raise UserError(
                f"{len(hypotheses)} hypotheses and {len(reference)} lines in reference {index + 1}: the score of lines "
                "that do not match means nothing; give one reference line per hypothesis"
            )
    results = {}
    for name in metrics:
        metric = _metric(name)
        # corpus_score() in its two halves: sacreBLEU keeps the sentence statistics to itself.
        statistics = metric._extract_corpus_statistics(hypotheses, references)
        results[name] = {
            "score": float(metric._aggregate_and_compute(statistics).score),
            "signature": str(metric.get_signature()),
            "statistics": [[int(count) for count in sentence] for sentence in statistics],
        }
    return results


@final
class RunningScore:
    """The corpus score of pairs that come bit by bit; only sums are kept."""

    def __init__(self, name: str):
        self._metric, self._sums, self.sentences = _metric(name), [0], 0

    def add(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Adds sentences with one reference each."""
        if not hypotheses:
            return
        statistics = self._metric._extract_corpus_statistics(hypotheses, [references])
        sums = [sum(counts) for counts in zip(*statistics, strict=True)]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self.sentences else sums
        self.sentences += len(hypotheses)

    def result(self) -> dict[str, Any] | None:
        """`score` and `signature`; None without a sentence."""
        if not self.sentences:
            return None
        score = float(self._metric._aggregate_and_compute([self._sums]).score)
        return {"score": score, "signature": str(self._metric.get_signature())}


@final
class SentenceScore:
    """How close each of some texts is to one reference: sentence BLEU or chrF, as sacreBLEU's sentence_score."""

    def __init__(self, name: str):
        self._metric = _metric(name, **({"effective_order": True} if name == "bleu" else {}))
        self._metric.sentence_score("one", ["one"])  # before it has a score it has no signature
        self.signature = str(self._metric.get_signature())

    def __call__(self, texts: Sequence[str], reference: str) -> list[float]:
        metric = self._metric
        # sentence_score() in its parts: the reference is looked at once and not for each text.
        known = metric._extract_reference_info([metric._preprocess_segment(reference)])
        statistics = [metric._compute_segment_statistics(metric._preprocess_segment(text), known) for text in texts]
        return [float(metric._aggregate_and_compute([counts]).score) for counts in statistics]


def _metric(name: str, **settings: Any) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    known: dict[str, Any] = {"bleu": BLEU, "chrf": CHRF}
    if name not in known:
        hint = did_you_mean(name, known) or f"; write some of {', '.join(known)}"
        raise UserError(f"metric '{name}' is not known, so nothing can be scored with it{hint}")
    return known[name](**settings)
