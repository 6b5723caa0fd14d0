"""Corpus BLEU and chrF by sacreBLEU, with the signature that makes a score comparable.

Both on 0-100. BLEU: sacreBLEU's defaults (13a tokenisation, exponential smoothing, case kept). chrF: chrF2.
Source: Papineni et al. 2002; Popovic 2015; Post 2018 (signatures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    from sacrebleu.metrics import BLEU, CHRF

    for index, reference in enumerate(references):
        if len(reference) != len(hypotheses):
            raise UserError(
                f"{len(hypotheses)} hypotheses and {len(reference)} lines in reference {index + 1}: the score of lines "
                "that do not match means nothing; give one reference line per hypothesis"
            )
    known: dict[str, Any] = {"bleu": BLEU, "chrf": CHRF}
    results = {}
    for name in metrics:
        if name not in known:
            hint = did_you_mean(name, known) or f"; write some of {', '.join(known)}"
            raise UserError(f"metric '{name}' is not known, so nothing can be scored with it{hint}")
        metric = known[name]()
        # corpus_score() in its two halves: sacreBLEU keeps the sentence statistics to itself.
        statistics = metric._extract_corpus_statistics(hypotheses, references)
        results[name] = {
            "score": float(metric._aggregate_and_compute(statistics).score),
            "signature": str(metric.get_signature()),
            "statistics": [[int(count) for count in sentence] for sentence in statistics],
        }
    return results
