"""The labelling report: what the teacher said of a corpus, and how the labels differ from the gold targets.

Gathered a batch at a time; what grows with the corpus are the hashes of its distinct words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from kdlab.data.candidates import Row
from kdlab.data.cleaning import HashSet, hash_lines
from kdlab.evaluation.sacrebleu import METRICS, RunningScore

NUM_EXAMPLES = 10
SCORED_ROWS = 100_000  # BLEU and chrF of more rows than these are of every k-th; some 50 CPU-seconds


@final
@dataclass
class Mode:
    """How sure the teacher is: of rows whose best hypothesis is finished, what it thinks of that one, the mode.

    log_prob   mean log-probability of the mode a sentence (nats), and over all tokens a token
    prob       mean p(mode)
    share      mean p(mode) / sum of p over the finished hypotheses of the row, of rows with more than one
    Source: Kim & Rush 2016, who report p(mode).
    """

    rows: int = 0
    rows_nbest: int = 0
    tokens: int = 0
    log_prob: float = 0.0
    prob: float = 0.0
    share: float = 0.0

    def add(self, row: Row) -> None:
        """Adds a row; one whose best hypothesis says nothing is left out."""
        whole = [one for one in row.candidates if one.finished and math.isfinite(one.log_prob)]
        if not whole or whole[0].rank > 0:
            return
        best = whole[0]
        self.rows += 1
        self.tokens += best.num_tokens
        self.log_prob += best.log_prob
        self.prob += math.exp(best.log_prob)
        if len(whole) > 1:
            self.rows_nbest += 1
            different = {(*one.tgt, round(one.log_prob, 3)): one.log_prob for one in whole}  # samples may be equal
            self.share += 1 / sum(math.exp(min(found - best.log_prob, 700.0)) for found in different.values())

    def figures(self) -> dict[str, Any]:
        """The means; null where there is nothing to take one of."""
        return {
            "rows": self.rows,
            "log_prob_per_sentence": _mean(self.log_prob, self.rows),
            "log_prob_per_token": _mean(self.log_prob, self.tokens),
            "prob": _mean(self.prob, self.rows),
            "share_of_nbest": _mean(self.share, self.rows_nbest),
        }


@dataclass(frozen=True)
class Labelled:
    """Labels with their rows, an entry a label; labels of one row follow each other."""

    position: NDArray[np.int64]  # of the row in the corpus
    row_id: NDArray[np.int64]
    label: list[str]
    score: list[float]
    label_len: NDArray[np.int32]  # tokens of the corpus's tokenizer, EOS counted
    src: list[str]
    src_len: NDArray[np.int32]
    gold: list[str]  # without characters where there is no gold target
    gold_len: NDArray[np.int32]


@final
@dataclass
class Figures:
    """The labels beside the sources and gold targets of their rows."""

    num_rows: int  # of the whole corpus
    labels: int = 0
    labelled_rows: int = 0
    tokens: int = 0
    src_tokens: int = 0
    gold_tokens: int = 0
    gold_src_tokens: int = 0
    types: tuple[int, int] = (0, 0)  # distinct words (between spaces) of labels and of gold targets
    _seen: tuple[HashSet, HashSet] = field(default_factory=lambda: (HashSet(), HashSet()))
    _scores: dict[str, RunningScore] = field(default_factory=lambda: {name: RunningScore(name) for name in METRICS})
    _examples: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    _last: int = -1

    def add(self, part: Labelled) -> None:
        """Adds labels."""
        self.labels += len(part.label)
        is_new = np.diff(part.position, prepend=self._last) != 0  # the first label of its row
        self.labelled_rows += int(is_new.sum())
        if len(part.label):
            self._last = int(part.position[-1])
        has_gold = np.array([bool(text.strip()) for text in part.gold], np.bool_)
        self.tokens += int(part.label_len.sum())
        self.src_tokens += int(part.src_len.sum())
        self.gold_tokens += int(part.gold_len[has_gold & is_new].sum())
        self.gold_src_tokens += int(part.src_len[has_gold & is_new].sum())
        with_gold = np.flatnonzero(has_gold).tolist()
        words = ((part.label[at] for at in with_gold), (part.gold[at] for at in with_gold))
        new = [_add_words(seen, texts) for seen, texts in zip(self._seen, words, strict=True)]
        self.types = (self.types[0] + new[0], self.types[1] + new[1])
        every = max(1, -(-self.num_rows // SCORED_ROWS))
        scored = np.flatnonzero(has_gold & (part.position % every == 0)).tolist()
        for metric in self._scores.values():
            metric.add([part.label[at] for at in scored], [part.gold[at] for at in scored])
        for at in np.flatnonzero(is_new).tolist():
            self._offer(int(part.position[at]), part, at)

    def _offer(self, position: int, part: Labelled, at: int) -> None:
        """Of each tenth of the corpus the first row is shown: the same rows in whatever order they come."""
        tenth = position * NUM_EXAMPLES // self.num_rows
        if tenth not in self._examples or position < self._examples[tenth][0]:
            shown = {"row_id": int(part.row_id[at]), "src": part.src[at], "gold": part.gold[at]}
            self._examples[tenth] = position, {**shown, "label": part.label[at], "score": round(part.score[at], 4)}

    def figures(self) -> dict[str, Any]:
        """As plain values."""
        scores = {name: metric.result() for name, metric in self._scores.items()}
        return {
            "labels": self.labels,
            "labelled_rows": self.labelled_rows,
            "tokens": self.tokens,
            "length_ratio": _mean(self.tokens, self.src_tokens),
            "gold_length_ratio": _mean(self.gold_tokens, self.gold_src_tokens),
            "types": self.types[0],
            "gold_types": self.types[1],
            "scored_labels": self._scores[METRICS[0]].sentences,
            **scores,
        }

    def examples(self) -> list[dict[str, Any]]:
        """Up to ten rows with their best label, spread over the corpus."""
        return [shown for _, (_, shown) in sorted(self._examples.items())]


def markdown(report: dict[str, Any]) -> str:
    """report.json as a page to read."""
    mode = report["mode"]
    figures = {
        "rows": f"{report['rows']:,}",
        "labels": f"{report['labels']:,} of {report['labelled_rows']:,} rows, labels.choose={report['choose']}",
        "log-probability of the mode, nats a sentence": mode["log_prob_per_sentence"],
        "log-probability of the mode, nats a token": mode["log_prob_per_token"],
        "p(mode)": mode["prob"],
        "p(mode) over p of all n-best": mode["share_of_nbest"],
        "tokens of labels over tokens of sources": report["length_ratio"],
        "tokens of gold over tokens of sources": report["gold_length_ratio"],
        "distinct words of labels": f"{report['types']:,}",
        "distinct words of gold": f"{report['gold_types']:,}",
        "best hypothesis dropped, another one taken": f"{report['replaced']:,} rows",
        "chosen by rank of the hypothesis": ", ".join(f"{count:,}" for count in report["ranks"]),
    }
    for name in METRICS:
        if report[name]:
            signature = report[name]["signature"].replace("|", "\\|")  # it stands in a table
            figures[f"{name} against gold"] = f"{report[name]['score']:.2f} ({signature})"
    if report["reverse"]:
        figures["nll of the source by the reverse model, nats a token"] = report["reverse"]["nll_per_token"]
        figures["nll of the source where labels are kept"] = report["reverse"]["nll_per_token_kept"]
    table = [f"| {name} | {'-' if value is None else value} |" for name, value in figures.items()]
    lines = ["# Pseudo-labels", "", "| | |", "|---|---|", *table]
    lines += ["", "| rule | hypotheses dropped | rows without a label | share of rows |", "|---|---|---|---|"]
    lines += [
        f"| {rule} | {counts['hypotheses']:,} | {counts['rows']:,} | {counts['share_of_rows']:.4%} |"
        for rule, counts in report["rules"].items()
    ]
    lines += ["", "## Examples", ""]
    for shown in report["examples"]:
        lines += [f"- row {shown['row_id']}, score {shown['score']}"]
        lines += [f"  - {name}: {' '.join(shown[name].split())}" for name in ("src", "gold", "label")]
    return "\n".join(lines) + "\n"


def _add_words(seen: HashSet, texts: Iterable[str]) -> int:
    words = sorted({word for text in texts for word in text.split()})
    return int(seen.add(hash_lines(words)).sum()) if words else 0


def _mean(total: float, number: int) -> float | None:
    return float(f"{total / number:.6g}") if number else None
