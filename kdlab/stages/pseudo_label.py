"""Stage pseudo_label: the labels that are chosen among the teacher's hypotheses, tied to their rows.

The first hypothesis of a row is its label. A row gets none, and training falls back to its gold target, when it
- is unfinished: it was cut off at the greatest length, so it repeats itself or lacks its end;
- is empty: its text has no characters; or
- is missing: the source is longer than the teacher's positions, or its score is no number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlab import runtime
from kdlab.errors import UserError

VERSION = 1


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Chooses a label for every row that has a good one.

    inputs: corpus, hypotheses. params: none. local: min_labelled (share of rows).
    Writes what data/labels.py reads.
    Raises: UserError where too few rows get a label.
    """
    from kdlab.data.hypotheses import read_hypotheses
    from kdlab.data.labels import LabelWriter
    from kdlab.data.prepared import PreparedCorpus

    corpus = PreparedCorpus.open(inputs["corpus"])
    num_rows, num_src_tokens = len(corpus.train), int(corpus.train.src_len.sum())
    counts = dict.fromkeys(("labels", "empty", "unfinished", "missing", "tokens"), 0)
    columns = ("tgt", "text", "score", "log_prob")
    with LabelWriter(out) as writer:
        for rows in read_hypotheses(inputs["hypotheses"]):
            chosen = []
            for row in rows:
                why = _unfit(row)
                counts[why or "labels"] += 1
                if why is None:
                    chosen.append(row)
                    counts["tokens"] += len(row["tgt"][0])
            first = {name: [row[name][0] for row in chosen] for name in columns}
            ids = {name: [row[name] for row in chosen] for name in ("row_id", "src_hash")}
            writer.write(**ids, **first)
    if counts["labels"] < local["min_labelled"] * num_rows:
        raise UserError(
            f"only {counts['labels']:,} of {num_rows:,} rows got a pseudo-label ({counts['empty']:,} hypotheses are "
            f"empty, {counts['unfinished']:,} never end), so a student would mostly learn from gold under another "
            "name; train the teacher longer, raise label_decode.max_length_ratio where sentences are cut off, or lower "
            "min_labelled"
        )
    runtime.say(
        f"pseudo_label: {counts['labels']:,} labels for {num_rows:,} rows; without one: {counts['empty']:,} empty, "
        f"{counts['unfinished']:,} unfinished, {counts['missing']:,} missing"
    )
    return {
        "rows": num_rows,
        **counts,
        "mean_length_ratio": round(counts["tokens"] / max(1, num_src_tokens), 4),
        "rule": "empty, unfinished and missing hypotheses give no label; the row keeps its gold target alone",
    }


def _unfit(row: dict[str, Any]) -> str | None:
    """Why the first hypothesis is no label; None where it is one."""
    if not row["text"]:
        return "missing"
    if not row["finished"][0]:
        return "unfinished"
    return None if row["text"][0].strip() else "empty"
