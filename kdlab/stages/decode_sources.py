"""Stage decode_sources: all that the teacher says of every training source, by any number of processes.

The batches are planned over the whole corpus from lengths alone; shards are runs of whole batches, and processes take
them under leases of their own (data/shards.py has their files). What is decoded is therefore the same, byte by byte,
for any number of processes and after any kill, on one kind of machine and one `threads`; at fp32 it also depends on
neither the token budget nor the order of the corpus, but for rounding of the scores.
The first process merges the shards, each row held against the plan. Rules for what a search may bring:
- a hypothesis whose score or log-probability is no number is not kept (`nan` counts them);
- a line break in a hypothesis becomes a space (`line_breaks`: hypotheses that had one);
- empty and unfinished hypotheses are kept and counted: stage pseudo_label decides;
- a source that is too long for the teacher has no hypothesis (`too_long`).
A teacher with another vocabulary than the corpus is fed the source text, and its text is encoded as the corpus is.

With decode.engine=ctranslate2 both engines decode a sample of the rows when the stage starts: the summary says how far
the hypotheses are those of the fp32 teacher in PyTorch.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import files, runtime
from kdlab.errors import UserError, memory_may_run_out

if TYPE_CHECKING:
    from kdlab.data.decode_plan import DecodePlan
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.data.shards import Shards
    from kdlab.decoding.engine import Candidate, Engine, Sources
    from kdlab.decoding.shared_work import SharedWork, Taken

VERSION = 1
SAMPLE_ROWS = 64  # decoded by both engines
COUNTED = ("rows", "hypotheses", "too_long", "unfinished", "empty", "nan", "line_breaks", "tokens")


@memory_may_run_out("write label_decode.batch_tokens lower")
def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Decodes the training sources of a corpus, alone or with those who call `assist`, and writes the hypotheses.

    inputs: corpus, teacher; teacher_2 and so on: the other models of an ensemble. params: decode (as
    decoding/engines.py takes it). local: device, threads.
    Writes what data/hypotheses.py reads, in the order of the plan.
    Raises: UserError where a shard is not what the plan wants there.
    """
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with runtime.stopped_by_sigterm():
        work = _Work(scratch, inputs, params, local)
        agreement = work.agreement()
        work.decode()
        found = _merge(out, work.shards)
    runtime.say(
        f"hypotheses: {found['hypotheses']:,} for {found['rows']:,} rows; {found['unfinished']:,} are unfinished, "
        f"{found['empty']:,} empty, {found['nan']:,} dropped without a score; {found['too_long']:,} rows are too long "
        "for the teacher"
    )
    return {**found, **({"agreement": agreement} if agreement else {})}


def assist(scratch: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> None:
    """Decodes shards of a `run` under way in another process, until none is left; `scratch` is that of its `out`."""
    try:
        with runtime.stopped_by_sigterm():
            _Work(scratch, inputs, params, local).decode()
    except Exception:  # whose folder is gone says so in its own way: CTranslate2Model.open takes it for a bad model
        if (scratch / "shards").exists():  # not `scratch`: an export under way may have made its folder anew
            raise
        shutil.rmtree(scratch / "engines", ignore_errors=True)  # `run` has ended meanwhile
        with contextlib.suppress(OSError):
            scratch.rmdir()


class _Work:
    """What a process needs in order to do its share; opened when it is first asked for."""

    def __init__(self, scratch: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]):
        for folder in ("shards", "locks", "engines"):  # by whoever is first; never their parent: see `assist`
            (scratch / folder).mkdir(exist_ok=True)
        self._scratch, self._inputs, self._decode, self._local = scratch, inputs, params["decode"], local
        runtime.start_torch(local["threads"])

    @cached_property
    def corpus(self) -> PreparedCorpus:
        from kdlab.data.prepared import PreparedCorpus

        return PreparedCorpus.open(self._inputs["corpus"])

    @cached_property
    def shards(self) -> Shards:
        from kdlab.data.shards import Shards

        plan = self._plan(self.corpus.train.src_len)
        return Shards(self._scratch / "shards", plan, self.corpus.train, plan.fingerprint())

    @cached_property
    def engine(self) -> Engine:
        return self._open_engine(self._decode)

    def decode(self) -> None:
        """Decodes until every shard is finished, by us or by others; takes over what dead ones leave."""
        from kdlab.decoding.shared_work import SharedWork

        if len(self.shards.finished()) == self.shards.plan.num_shards:
            return
        first = {"parameters": self.engine.num_parameters}
        with SharedWork(self.shards, self._scratch / "locks", first) as share:
            while (taken := share.wait()) is not None:
                self._decode_from(taken, share)

    def agreement(self) -> dict[str, Any]:
        """How far the engine is the fp32 teacher in PyTorch: share of equal best hypotheses, difference of scores."""
        if self._decode.get("engine") != "ctranslate2":
            return {}
        kept = self._scratch / "agreement.json"
        if not kept.exists():
            files.write_json(kept, self._compare())
        found: dict[str, Any] = files.read_json(kept)
        return found

    def _decode_from(self, first: Taken, share: SharedWork) -> None:
        """Decodes a shard and, without a pause of the engine between them, what can be taken behind it."""
        under_way: deque[tuple[Taken, int]] = deque()

        def sources() -> Iterator[Sources]:
            taken: Taken | None = first
            while taken is not None:
                for batch in taken.writer.left:
                    under_way.append((taken, batch))
                    yield self._sources(self.shards.plan.rows(batch))
                taken = share.take()

        before = time.monotonic(), runtime.cpu_seconds()
        for found in self.engine.decode(sources()):
            taken, batch = under_way.popleft()
            rows = self._rows(self.shards.plan.rows(batch), found)
            now = time.monotonic(), runtime.cpu_seconds()
            note = {"wall_s": round(now[0] - before[0], 4), "cpu_s": round(now[1] - before[1], 4)}
            share.write(taken, batch, rows, note)
            before = now
        if under_way:
            raise RuntimeError(f"the engine gave nothing for {len(under_way)} batches")

    def _sources(self, at: Any) -> Sources:
        """What the engine is asked; `at` are positions in the corpus."""
        from kdlab.decoding.engine import Sources

        rows = self.corpus.train
        shared = self.engine.fingerprint == self.corpus.tokenizer.fingerprint
        ids = [row.tolist() for row in rows.src_ids(at)] if shared else None
        return Sources(rows.row_id[at].tolist(), rows.src_text(at), ids)

    def _rows(self, at: Any, found: list[list[Candidate]]) -> list[dict[str, Any]]:
        """The columns of data/hypotheses.py for every row, and what was dropped or changed there."""
        from kdlab.decoding.text import one_line
        from kdlab.types import EOS_ID

        rows, tokenizer = self.corpus.train, self.corpus.tokenizer
        kept = [[x for x in row if math.isfinite(x.score) and math.isfinite(x.log_prob)] for row in found]
        text = [[one_line(x.text) for x in row] for row in kept]
        if self.engine.fingerprint == tokenizer.fingerprint:
            tgt = [[[*(x.ids or ()), EOS_ID] for x in row] for row in kept]
        else:
            encoded = iter(tokenizer.encode_tgt([line for row in text for line in row]))
            tgt = [[next(encoded) for _ in row] for row in kept]
        ids = zip(rows.row_id[at].tolist(), rows.src_hash[at].tolist(), strict=True)
        return [
            {
                "row_id": row_id,
                "src_hash": src_hash,
                "tgt": tgt[row],
                "text": text[row],
                "score": [x.score for x in kept[row]],
                "log_prob": [x.log_prob for x in kept[row]],
                "num_tokens": [x.num_tokens for x in kept[row]],
                "finished": [x.finished for x in kept[row]],
                "nan": len(found[row]) - len(kept[row]),
                "line_breaks": sum(x.text != line for x, line in zip(kept[row], text[row], strict=True)),
            }
            for row, (row_id, src_hash) in enumerate(ids)
        ]

    def _plan(self, lengths: Any) -> DecodePlan:
        from kdlab.data.decode_plan import DecodePlan
        from kdlab.decoding.engines import batch_width

        return DecodePlan.make(lengths, batch_tokens=self._decode["batch_tokens"], width=batch_width(self._decode))

    def _open_engine(self, decode: dict[str, Any]) -> Engine:
        from kdlab.decoding.engines import open_engine

        names = sorted((name for name in self._inputs if name.startswith("teacher")), key=lambda it: (len(it), it))
        device, threads = runtime.device(self._local["device"]), self._local["threads"]
        folder = self._scratch / "engines" / files.Owner.this_process().id
        folder.mkdir()
        try:
            teachers = [self._inputs[name] for name in names]
            return open_engine(teachers, decode, device=device, threads=threads, scratch=folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the engine is in memory now

    def _compare(self) -> dict[str, Any]:
        order = self.shards.plan.order
        sample = order[:: max(1, len(order) // SAMPLE_ROWS)][:SAMPLE_ROWS]
        plan = self._plan(self.corpus.train.src_len[sample])
        batches = [self._sources(sample[plan.rows(batch)]) for batch in range(plan.num_batches)]
        own = {name: value for name, value in self._decode.items() if name != "engine"}
        ours, theirs = (
            [row for batch in engine.decode(batches) for row in batch]
            for engine in (self._open_engine({**own, "precision": "fp32"}), self.engine)
        )
        both = [(mine[0], other[0]) for mine, other in zip(ours, theirs, strict=True) if mine and other]
        pairs = [(mine, other) for mine, other in both if math.isfinite(mine.score) and math.isfinite(other.score)]
        same = sum(mine.text == other.text for mine, other in pairs)
        apart = sum(abs(mine.score - other.score) for mine, other in pairs) / max(1, len(pairs))
        runtime.say(
            f"hypotheses: CTranslate2 and the fp32 teacher in PyTorch agree on {same} of {len(pairs)} sentences, "
            f"scores differ by {apart:.6f} on average"
        )
        return {"rows": len(pairs), "same": same, "mean_score_difference": round(apart, 6)}


def _merge(out: Path, shards: Shards) -> dict[str, Any]:
    """Writes the hypotheses of all shards, each line held against the plan; returns the counts."""
    from kdlab.data.arrow import ROWS_PER_CHUNK
    from kdlab.data.hypotheses import HYPOTHESES_SCHEMA, HypothesesWriter
    from kdlab.data.shards import Damage, DecodedBatch

    num_shards = shards.plan.num_shards
    counts: dict[str, Any] = dict.fromkeys((*COUNTED, "parameters", "wall_s", "cpu_s"), 0)

    def rows() -> Iterator[dict[str, Any]]:
        for shard in runtime.progress(range(num_shards), what="merge", total=num_shards, unit="shards"):
            try:
                for found in shards.read(shards.path(shard), shard):
                    if isinstance(found, DecodedBatch):
                        yield from found.rows
                        counts["wall_s"] += found.note["wall_s"]
                        counts["cpu_s"] += found.note["cpu_s"]
                    else:
                        counts["parameters"] = found["parameters"]
            except Damage as damage:
                raise UserError(
                    f"{shards.path(shard)}, {damage}; a student would learn from what the teacher did not say; delete "
                    "this file and give the same command again, which decodes its rows anew"
                ) from None

    every = rows()
    with HypothesesWriter(out) as writer:
        while some := list(islice(every, ROWS_PER_CHUNK)):  # so that the file does not depend on the shards
            writer.write({name: [row[name] for row in some] for name in HYPOTHESES_SCHEMA.names})
            _count(counts, some)
    wall_s, cpu_s = counts.pop("wall_s"), counts.pop("cpu_s")
    return {
        **counts,  # tokens: of the first hypothesis of every row
        "tokens_per_s": round(counts["tokens"] / max(wall_s, 1e-9), 1),  # of one process
        "tokens_per_cpu_s": round(counts["tokens"] / max(cpu_s, 1e-9), 1),
        "cpu_s": round(cpu_s, 1),  # of all processes
        "rule": "hypotheses without a score are dropped, line breaks in them become spaces",
    }


def _count(counts: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        counts["rows"] += 1
        counts["hypotheses"] += len(row["text"])
        counts["too_long"] += not row["text"] and not row["nan"]
        counts["unfinished"] += row["finished"].count(False)
        counts["empty"] += sum(not text.strip() for text in row["text"])
        counts["nan"] += row["nan"]
        counts["line_breaks"] += row["line_breaks"]
        counts["tokens"] += sum(row["num_tokens"][:1])
