"""Stage pseudo_label: which of the teacher's hypotheses become the labels of a corpus, and what they are like.

Three passes over files, none of which is held in memory: hypotheses are filtered and chosen row by row
(data/label_filters.py, data/choice.py); where a reverse model is given, the chosen are scored by it, a batch of rows
after the other, and the worst share is dropped; what is left is written and reported. A killed run goes on after the
last finished pass, and in the second after the last finished batch.

A row without a label keeps its gold target alone. The drop by the reverse model comes after the choice: no other
hypothesis takes the place of what it drops.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import files, runtime
from kdlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdlab.data.prepared import PreparedCorpus

VERSION = 2
DEFAULTS = {
    "choose": "first",
    "max_length_ratio": None,
    "max_repetition": None,
    "drop_copies": False,
    "min_score": None,
}


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Makes labels of hypotheses.

    inputs: corpus, hypotheses (of every row), reverse (a model folder) if its judgement is asked for. params: those of
    DEFAULTS that differ; drop_share with a reverse model. local: min_labelled (share of rows); device and threads.
    Writes what data/labels.py reads, report.json and report.md.
    Raises: UserError where hypotheses are not those of the corpus, or too few rows get a label.
    """
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.evaluation.label_report import markdown

    settings, corpus = {**DEFAULTS, **params}, PreparedCorpus.open(inputs["corpus"])
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    if not (scratch / "chosen.json").is_file():
        chosen = _choose(scratch, inputs["hypotheses"], settings, corpus)
        files.sync(scratch)  # chosen.json vouches for the labels beside it
        files.write_json(scratch / "chosen.json", chosen)
    report: dict[str, Any] = {"rows": len(corpus.train), **files.read_json(scratch / "chosen.json")}
    drop, reverse = None, None
    if "reverse" in inputs:
        drop, reverse = _judge(scratch, inputs, settings["drop_share"], corpus, local, sum(report["ranks"]))
    figures, examples = _write(out, scratch, corpus, drop)
    rules, labelled = report["rules"], figures["labelled_rows"]
    without = sum(counts["rows"] for counts in rules.values())
    if reverse is not None:
        rules["reverse"] = {"hypotheses": reverse["dropped"], "rows": report["rows"] - without - labelled}
    for counts in rules.values():
        counts["share_of_rows"] = round(counts["rows"] / max(1, report["rows"]), 6)
    report |= {**figures, "reverse": reverse}
    refuse_few(report, local["min_labelled"])
    whole = {**report, "decoding": _decoding(inputs["hypotheses"]), "examples": examples}
    files.write_json(out / "report.json", whole)
    files.write_text(out / "report.md", markdown(whole))
    runtime.say(
        f"pseudo_label: {figures['labels']:,} labels for {labelled:,} of {report['rows']:,} rows; without one: "
        + (_counted(rules) or "none")
    )
    return {**report, "rule": "a row without a label keeps its gold target alone"}


def _choose(scratch: Path, hypotheses: Path, settings: dict[str, Any], corpus: PreparedCorpus) -> dict[str, Any]:
    """The first pass: every chosen hypothesis into scratch, and what became of the others."""
    from kdlab.data.candidates import read_candidates
    from kdlab.data.choice import Choice
    from kdlab.data.label_filters import LabelFilters
    from kdlab.data.labels import LabelWriter
    from kdlab.evaluation.label_report import Mode
    from kdlab.evaluation.sacrebleu import METRICS, SentenceScore

    choose = settings["choose"]
    closeness = SentenceScore(choose) if choose in METRICS else None
    filters = LabelFilters(**{name: settings[name] for name in DEFAULTS if name != "choose"})
    choice, mode = Choice(choose, filters, closeness), Mode()
    with LabelWriter(scratch) as writer, runtime.bar(what="pseudo_label", total=len(corpus.train)) as shown:
        for rows in read_candidates(hypotheses, corpus.train, corpus.tokenizer.tgt_vocab_size):
            chosen = []
            for row in rows:
                mode.add(row)
                chosen += [(row, label) for label in choice.labels(row)]
            writer.write(
                row_id=[row.row_id for row, _ in chosen],
                src_hash=[row.src_hash for row, _ in chosen],
                **{
                    name: [getattr(label, name) for _, label in chosen]
                    for name in ("tgt", "text", "score", "log_prob", "rank")
                },
            )
            shown.update(len(rows))
    return {
        "choose": choose,
        "closeness": closeness.signature if closeness else None,
        **choice.counts(),
        "mode": mode.figures(),
    }


def _judge(
    scratch: Path,
    inputs: dict[str, Path],
    drop_share: float,
    corpus: PreparedCorpus,
    local: dict[str, Any],
    total: int,
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """The second pass: which of the chosen the reverse model finds worst, and its figures."""
    import numpy as np

    from kdlab.data.labels import stream_labels
    from kdlab.decoding.reverse import ReverseModel

    runtime.start_torch(local["threads"])
    model, places = ReverseModel.open(inputs["reverse"], device=runtime.device(local["device"])), []
    with runtime.bar(what="pseudo_label, reverse model", total=total, unit="labels") as shown:
        for number, (index, labels) in enumerate(stream_labels(scratch, corpus.train)):
            places.append(scratch / f"reverse_{number:06d}.npy")
            if not places[-1].is_file():
                temporary = scratch / "unfinished.npy"
                np.save(temporary, model.nll_per_token(labels["text"], corpus.train.src_text(index)))
                files.put_in_place(temporary, places[-1])
            shown.update(len(index))
    nll = np.concatenate([np.load(place) for place in places]) if places else np.empty(0)
    nll = np.where(np.isnan(nll), np.inf, nll)  # what cannot be judged is the worst
    drop, num = np.zeros(len(nll), np.bool_), math.floor(drop_share * len(nll) + 1e-9)
    drop[np.argsort(-nll, kind="stable")[:num]] = True  # of equals the first ones
    finite = np.isfinite(nll)
    return drop, {
        "dropped": num,
        "too_long": int((~finite).sum()),  # for the reverse model: worse than all others
        "nll_per_token": _mean(nll[finite]),
        "nll_per_token_kept": _mean(nll[finite & ~drop]),
    }


def _write(
    out: Path, scratch: Path, corpus: PreparedCorpus, drop: NDArray[np.bool_] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last pass: the labels themselves, how they stand beside gold, and examples."""
    import numpy as np

    from kdlab.data.labels import LabelWriter, stream_labels
    from kdlab.evaluation.label_report import Figures, Labelled

    rows, found, done = corpus.train, Figures(len(corpus.train)), 0
    with LabelWriter(out) as writer:
        for index, labels in stream_labels(scratch, rows):
            if drop is not None:
                kept = np.flatnonzero(~drop[done : done + len(index)])
                done += len(index)
                index, labels = index[kept], {name: [column[at] for at in kept] for name, column in labels.items()}
            writer.write(**labels)
            found.add(
                Labelled(
                    position=index,
                    row_id=rows.row_id[index],
                    label=labels["text"],
                    score=labels["score"],
                    label_len=np.fromiter(map(len, labels["tgt"]), np.int32, len(index)),
                    src=rows.src_text(index),
                    src_len=rows.src_len[index],
                    gold=rows.tgt_text(index),
                    gold_len=rows.tgt_len[index],
                )
            )
    return found.figures(), found.examples()


def refuse_few(report: dict[str, Any], min_labelled: float) -> None:
    """Raises: UserError where too few rows have a label, by the labels' report."""
    rows, labelled = report["rows"], report["labelled_rows"]
    if labelled < min_labelled * rows:
        raise UserError(
            f"only {labelled:,} of {rows:,} rows got a pseudo-label (without one: {_counted(report['rules'])}), so a "
            "student would mostly learn from gold under another name; train the teacher longer, raise "
            "label_decode.max_length_ratio where sentences are cut off, loosen the filters of labels, or lower "
            "min_labelled"
        )


def _counted(rules: dict[str, Any]) -> str:
    return ", ".join(f"{counts['rows']:,} {rule}" for rule, counts in rules.items() if counts["rows"])


def _mean(values: NDArray[np.float64]) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def _decoding(hypotheses: Path) -> Any:
    """What the step that decoded tells of it (engine, tokens per second); None where it left no manifest."""
    try:
        return files.read_json(hypotheses / "manifest.json")["summary"]
    except (OSError, ValueError, KeyError):
        return None
