"""Stage pseudo_label: the teacher's translation of every training source, tied to its row.

Sources are sorted by length over the whole corpus and decoded in chunks of a fixed number of rows; each finished chunk
is kept in scratch, so that a killed run goes on at the chunk where it stopped. Chunks are then merged into one file.
A row gets no label, and training falls back to its gold target, when the hypothesis
- is unfinished: it was cut off at the greatest length, so it repeats itself or lacks its end;
- is empty: its text has no characters; or
- is missing: the source is longer than the teacher's positions.
A teacher with another vocabulary than the corpus is fed the source text, and its text is encoded as the corpus is.

With decode.engine=ctranslate2 the teacher is exported when the stage starts, and both engines decode a sample of the
rows: the summary says how far the labels are those of the fp32 teacher in PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import files, runtime
from kdlab.errors import UserError

if TYPE_CHECKING:
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.decoding.beam import BeamConfig, Hypothesis
    from kdlab.decoding.translator import Translator

    Search = Callable[..., list[list[Hypothesis]]]  # translate.translate without its model

VERSION = 1
CHUNK_ROWS = 2048  # decides the batches and with them the last bits of scores: to change it, raise VERSION
SAMPLE_ROWS = 64  # decoded by both engines
STORED = {"fp32": "none", "bf16": "bf16", "int8": "int8"}  # precision: quantization of the export


@dataclass
class Chunk:
    """Labels of some rows, and what became of the others."""

    row_id: list[int] = field(default_factory=list)
    src_hash: list[int] = field(default_factory=list)
    tgt: list[list[int]] = field(default_factory=list)  # ids of the corpus's tokenizer, EOS last
    text: list[str] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    log_prob: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # row ids of all that were decoded
    empty: int = 0
    unfinished: int = 0
    too_long: int = 0
    src_tokens: int = 0  # of the rows with a label, EOS counted
    wall_s: float = 0.0
    cpu_s: float = 0.0


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Decodes the training sources of a corpus with a teacher.

    inputs: corpus, teacher (a model folder). params: decode {beam_size, length_penalty, max_length_ratio,
    max_length_extra, batch_tokens, precision; engine, else PyTorch}. local: device, threads, min_labelled (share of
    rows).
    Writes what data/labels.py reads.
    Raises: UserError where the teacher folder is no whole model, or too few rows get a label.
    """
    import numpy as np

    from kdlab.data.labels import LabelWriter
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.decoding.beam import BeamConfig
    from kdlab.decoding.translate import translate
    from kdlab.decoding.translator import Translator

    runtime.start_torch(local["threads"])
    decode = dict(params["decode"])
    batch_tokens, precision, engine = decode.pop("batch_tokens"), decode.pop("precision"), decode.pop("engine", None)
    config = BeamConfig(**decode)
    corpus = PreparedCorpus.open(inputs["corpus"])
    exported, device = engine == "ctranslate2", runtime.device(local["device"])
    teacher = Translator.open(inputs["teacher"], precision="fp32" if exported else precision, device=device)
    search: Search = partial(translate, teacher.model)

    order = np.argsort(-corpus.train.src_len, kind="stable")
    agreement: dict[str, Any] = {}
    if exported:
        own, folder = search, out / "scratch" / "ctranslate2"
        search = _ctranslate2(teacher, folder, STORED[precision], device, local["threads"])
        sample = _src_ids(corpus, teacher, order[:: max(1, len(order) // SAMPLE_ROWS)][:SAMPLE_ROWS])
        fits = [ids for ids in sample if len(ids) <= teacher.model.config.max_positions]
        agreement = _agreement(*(engine(fits, config, batch_tokens=batch_tokens) for engine in (own, search)))
    starts = range(0, len(order), CHUNK_ROWS)
    names = [out / "scratch" / f"chunk_{number:06d}.json" for number in range(len(starts))]
    done = sum(
        len(order[start : start + CHUNK_ROWS]) for start, name in zip(starts, names, strict=True) if name.exists()
    )
    if done:
        runtime.say(f"pseudo_label: {done} of {len(order)} rows are decoded already")
    with runtime.bar(what="pseudo_label", total=len(order), initial=done) as shown:
        for start, name in zip(starts, names, strict=True):
            if not name.exists():
                rows = order[start : start + CHUNK_ROWS]
                chunk = _decode(corpus, teacher, search, rows, config, batch_tokens, shown.update)
                files.write_text(name, json.dumps(asdict(chunk), allow_nan=False))

    totals: dict[str, Any] = dict.fromkeys(("empty", "unfinished", "too_long", "src_tokens", "wall_s", "cpu_s"), 0)
    labels = tokens = 0
    with LabelWriter(out) as writer:
        for start, chunk in zip(starts, _read(names), strict=True):
            if chunk.rows != corpus.train.row_id[order[start : start + CHUNK_ROWS]].tolist():
                raise RuntimeError("a chunk in scratch holds other rows than this corpus has there")
            columns = ("row_id", "src_hash", "tgt", "text", "score", "log_prob")
            writer.write(**{column: getattr(chunk, column) for column in columns})
            labels += len(chunk.tgt)
            tokens += sum(map(len, chunk.tgt))
            for total in totals:
                totals[total] += getattr(chunk, total)
    if labels < local["min_labelled"] * len(order):
        raise UserError(
            f"only {labels:,} of {len(order):,} rows got a pseudo-label ({totals['empty']:,} hypotheses are empty, "
            f"{totals['unfinished']:,} never end), so a student would mostly learn from gold under another name; train "
            "the teacher longer, raise label_decode.max_length_ratio where sentences are cut off, or lower min_labelled"
        )
    runtime.say(
        f"pseudo_label: {labels:,} labels for {len(order):,} rows; without one: {totals['empty']:,} empty, "
        f"{totals['unfinished']:,} unfinished, {totals['too_long']:,} too long for the teacher"
    )
    return {
        "rows": len(order),
        "labels": labels,
        "empty": totals["empty"],
        "unfinished": totals["unfinished"],
        "too_long": totals["too_long"],
        "tokens": tokens,
        "mean_length_ratio": round(tokens / max(1, totals["src_tokens"]), 4),
        "tokens_per_s": round(tokens / max(totals["wall_s"], 1e-9), 1),
        "tokens_per_cpu_s": round(tokens / max(totals["cpu_s"], 1e-9), 1),
        "cpu_s": round(totals["cpu_s"], 1),
        "parameters": teacher.num_parameters,
        **({"agreement": agreement} if agreement else {}),
        "rule": "empty, unfinished and missing hypotheses give no label; the row keeps its gold target alone",
    }


def _ctranslate2(teacher: Translator, folder: Path, quantization: str, device: str, threads: int) -> Search:
    """The search of the exported teacher."""
    from kdlab.decoding.ctranslate2 import CTranslate2Model
    from kdlab.decoding.translate import planned
    from kdlab.deploy.ctranslate2 import export

    tokenizer = teacher.tokenizer
    export(teacher.model, tokenizer.src_pieces, tokenizer.tgt_pieces, folder, quantization=quantization)
    model = CTranslate2Model.open(folder, device=device, threads=threads)

    def search(src_ids: list[list[int]], config: BeamConfig, **options: Any) -> list[list[Hypothesis]]:
        def found(batches: list[list[int]]) -> Iterator[list[list[Hypothesis]]]:
            return model.search(([src_ids[at] for at in batch] for batch in batches), config)

        return planned(found, [len(ids) for ids in src_ids], beam_size=config.beam_size, **options)

    return search


def _agreement(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> dict[str, Any]:
    """How far two engines say the same of the same sources: share of equal best hypotheses, difference of scores."""
    pairs = [(mine[0], other[0]) for mine, other in zip(ours, theirs, strict=True)]
    same = sum(mine.ids == other.ids for mine, other in pairs)
    apart = [abs(mine.score - other.score) for mine, other in pairs]
    found = {"rows": len(pairs), "same": same, "mean_score_difference": round(sum(apart) / max(1, len(apart)), 6)}
    runtime.say(
        f"pseudo_label: CTranslate2 and the fp32 teacher in PyTorch agree on {same} of {len(pairs)} hypotheses, scores "
        f"differ by {found['mean_score_difference']} on average"
    )
    return found


def _src_ids(corpus: PreparedCorpus, teacher: Translator, rows: Any) -> list[list[int]]:
    """Sources as the teacher knows them; `rows` are positions in the corpus."""
    if teacher.tokenizer.fingerprint == corpus.tokenizer.fingerprint:
        return [ids.tolist() for ids in corpus.train.src_ids(rows)]
    return teacher.tokenizer.encode_src(corpus.train.src_text(rows))


def _decode(
    corpus: PreparedCorpus,
    teacher: Translator,
    search: Search,
    rows: Any,
    config: BeamConfig,
    batch_tokens: int,
    progress: Any,
) -> Chunk:
    """Decodes one chunk; `rows` are positions in the corpus."""
    from kdlab.decoding.text import one_line
    from kdlab.evaluation.efficiency import Stopwatch
    from kdlab.types import EOS_ID

    source, chunk, watch = corpus.train, Chunk(), Stopwatch()
    same_ids = teacher.tokenizer.fingerprint == corpus.tokenizer.fingerprint
    with watch:
        src_ids = _src_ids(corpus, teacher, rows)
        fits = [at for at, ids in enumerate(src_ids) if len(ids) <= teacher.model.config.max_positions]
        short = [src_ids[at] for at in fits]
        found = search(short, config, batch_tokens=batch_tokens, progress=progress)
    chunk.rows = source.row_id[rows].tolist()
    chunk.too_long = len(rows) - len(fits)
    progress(chunk.too_long)
    for row, src_len, hypotheses in zip(rows[fits].tolist(), map(len, short), found, strict=True):
        best = hypotheses[0]
        text = one_line(teacher.tokenizer.decode_tgt(best.ids))
        if not best.finished:
            chunk.unfinished += 1
        elif not text.strip():
            chunk.empty += 1
        else:
            chunk.row_id.append(int(source.row_id[row]))
            chunk.src_hash.append(int(source.src_hash[row]))
            chunk.tgt.append([*best.ids, EOS_ID] if same_ids else corpus.tokenizer.encode_tgt([text])[0])
            chunk.text.append(text)
            chunk.score.append(best.score)
            chunk.log_prob.append(best.log_prob)
            chunk.src_tokens += src_len
    chunk.wall_s, chunk.cpu_s = watch.wall_s, watch.cpu_s
    return chunk


def _read(names: list[Path]) -> Iterator[Chunk]:
    return (Chunk(**files.read_json(name)) for name in names)
