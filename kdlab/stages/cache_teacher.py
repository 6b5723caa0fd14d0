"""Stage cache_teacher: what the teacher says at every target position, so that no student asks it again.

The frozen teacher reads every gold target, every pseudo-label and the validation split once. Kept are the inputs of its
head (hidden: exact at every temperature, logits are made anew by the head), with them the output of the decoder's last
layer where a term compares it; or its most likely tokens (top_k).
Rows are cut into shards; a shard counts as done once its numbers are on disk, and a killed run goes on after the last
one. Segmentation is fixed for a corpus: were it sampled anew each epoch, there would be nothing to keep.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import files, runtime
from kdlab.errors import UserError, memory_may_run_out

if TYPE_CHECKING:
    from torch import Tensor

    from kdlab.data.labels import PseudoLabels
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.teachers.cache_files import Column
    from kdlab.teachers.frozen import FrozenTeacher
    from kdlab.types import Batch

VERSION = 1
SHARD_ROWS = 2048  # decides the batches and with them the last bits of what is kept: to change it, raise VERSION


@memory_may_run_out("write trainer.microbatch_tokens or trainer.chunk_size lower (neither changes a result)")
def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Runs a teacher over a corpus and keeps what a student's terms need.

    inputs: corpus, teacher (a model folder), labels if there are pseudo-labels. params: kind (hidden, top_k), dtype (of
    the numbers kept: fp32, bf16), precision (the teacher's own: fp32, bf16, int8), top_k and temperatures (None for
    hidden), last_layer (whether it is kept; false if left out). local: device, threads, microbatch_tokens, chunk_size.
    Writes what teachers/cached.py reads.
    Raises: UserError where the disk has no room, or the teacher does not speak the corpus's vocabulary.
    """
    import numpy as np

    from kdlab.data.identity import identities
    from kdlab.data.labels import PseudoLabels
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.models.folder import WEIGHTS
    from kdlab.stages.train_model import frozen_teacher
    from kdlab.teachers.cache_files import CARD

    runtime.start_torch(local["threads"])
    device = runtime.device(local["device"])
    corpus = PreparedCorpus.open(inputs["corpus"])
    labels = PseudoLabels.open(inputs["labels"], corpus.train) if "labels" in inputs else None
    teacher = frozen_teacher(inputs["teacher"], corpus, labels, device, params["precision"])
    columns = _columns(params, teacher)
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)

    work = [_Split(out, "train", corpus, labels, columns), _Split(out, "valid", corpus, None, columns)]
    shards = [(split, number, scratch / f"{split.name}_{number:06d}.json") for split in work for number in split.shards]
    per_position = sum(column.num_bytes for column in columns.values())
    total = sum(split.positions(number) for split, number, _ in shards)
    done = sum(split.positions(number) for split, number, marker in shards if marker.exists())
    _announce(out, total, done, per_position, others="" if params.get("last_layer") else "teacher_cache=top_k, ")
    for split in work:
        split.reserve()
    for part, pieces in identities(corpus, labels).items():
        np.save(out / f"{part}.rows.npy", np.concatenate(list(pieces)))

    def ask(batch: Batch) -> dict[str, Tensor]:
        return _ask(teacher, batch.to(device), params, local["chunk_size"])

    with runtime.bar(what="cache_teacher", total=total, unit="positions", initial=done) as shown:
        for split, number, marker in shards:
            if not marker.exists():
                said = split.write(number, ask, local["microbatch_tokens"], shown.update)
                files.write_text(marker, json.dumps(said))

    known = [files.read_json(marker) for _, _, marker in shards]
    mass = sum(said["mass"] for said in known)
    card = {
        "kind": params["kind"],
        "columns": {name: {"dtype": column.dtype, "width": column.width} for name, column in columns.items()},
        "temperatures": params["temperatures"],
        "last_layer": _last_layer(params, teacher),  # the column that holds it
        "teacher": files.sha256_file(inputs["teacher"] / WEIGHTS),
        "tokenizer": corpus.tokenizer.fingerprint,
        "parts": [part for split in work for part in split.starts],
    }
    files.write_json(out / CARD, card)
    return {
        "positions": total,
        "bytes_per_position": per_position,
        "size_mb": round(total * per_position / 1e6, 3),
        # of the teacher's probability at temperature 1, the share that the kept tokens have
        "covered_mass": round(mass / max(1, total), 4) if params["kind"] == "top_k" else None,
    }


class _Split:
    """Training rows with gold targets and pseudo-labels, or validation rows: their positions and their files."""

    def __init__(
        self, out: Path, name: str, corpus: PreparedCorpus, labels: PseudoLabels | None, columns: dict[str, Column]
    ) -> None:
        import numpy as np

        from kdlab.data.batching import Lengths
        from kdlab.teachers.cache_files import starts

        rows = corpus.train if name == "train" else corpus.valid
        self.name, self._out, self._tokenizer = name, out, corpus.tokenizer
        self._rows, self._labels, self._columns = rows, labels, columns
        self._takes_gold = rows.has_gold
        self._takes_pseudo = np.zeros(len(rows), np.bool_) if labels is None else labels.has_label
        pseudo_len = np.zeros_like(rows.tgt_len) if labels is None else labels.tgt_len
        self._lengths = Lengths.of(rows.src_len, rows.tgt_len, pseudo_len, self._takes_gold, self._takes_pseudo)
        self.starts = {"valid" if name == "valid" else "gold": starts(rows.tgt_len)}
        if labels is not None:
            self.starts["pseudo"] = starts(pseudo_len)
        self.shards = range((len(rows) + SHARD_ROWS - 1) // SHARD_ROWS)

    def positions(self, number: int) -> int:
        """How many positions a shard has."""
        first, last = self._bounds(number)
        return int(sum(starts[last] - starts[first] for starts in self.starts.values()))

    def reserve(self) -> None:
        """Makes the files."""
        for part, starts in self.starts.items():
            for name, column in self._columns.items():
                column.reserve(self._out / f"{part}.{name}", int(starts[-1]))

    def write(
        self,
        number: int,
        ask: Callable[[Batch], dict[str, Tensor]],
        microbatch_tokens: int,
        progress: Callable[[int], Any],
    ) -> dict[str, float]:
        """Asks the teacher about one shard and puts the answers on disk; what is worth knowing of them."""
        import numpy as np

        from kdlab.data.batching import collate, split_step
        from kdlab.teachers.cache_files import places, starts

        first, last = self._bounds(number)
        room = {
            part: {name: column.empty(int(begin[last] - begin[first])) for name, column in self._columns.items()}
            for part, begin in self.starts.items()
        }
        mass = 0.0
        bring = first + np.flatnonzero(self._lengths.num_targets[first:last])  # source-only text may have no label
        for index in split_step(self._lengths, bring, microbatch_tokens) if len(bring) else ():
            batch = collate(
                self._rows,
                index,
                src_pad_id=self._tokenizer.src_pad_id,
                tgt_pad_id=self._tokenizer.tgt_pad_id,
                labels=self._labels,
                takes_gold=self._takes_gold,
                takes_pseudo=self._takes_pseudo,
            )
            said = ask(batch)
            length_R, pseudo_R = batch.targets.mask_RT.sum(1).numpy(), batch.targets.is_pseudo_R.numpy()
            row_R, from_R = index[batch.targets.source_R.numpy()], starts(length_R)[:-1]
            for part, begin in self.starts.items():
                rows = pseudo_R if part == "pseudo" else ~pseudo_R
                to_N = places(begin[row_R[rows]] - begin[first], length_R[rows])
                from_N = places(from_R[rows], length_R[rows])
                for name, column in self._columns.items():
                    room[part][name][to_N] = column.pack(said[name])[from_N]
            if "log_probs" in said:
                mass += float(said["log_probs"].double().exp().sum())
            progress(int(length_R.sum()))
        for part, begin in self.starts.items():
            for name, column in self._columns.items():
                column.write(self._out / f"{part}.{name}", int(begin[first]), room[part][name])
        return {"mass": mass}

    def _bounds(self, number: int) -> tuple[int, int]:
        return number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, len(self._rows))


def _columns(params: dict[str, Any], teacher: FrozenTeacher) -> dict[str, Column]:
    """What is kept of a position."""
    from kdlab.teachers.cache_files import Column

    if params["kind"] == "hidden":
        names = {"hidden", _last_layer(params, teacher) or "hidden"}
        return {name: Column(params["dtype"], teacher.d_model) for name in sorted(names)}
    vocab_size, top_k = teacher.config.tgt_vocab_size, params["top_k"]
    if top_k >= vocab_size:
        raise UserError(
            f"teacher_cache.top_k={top_k} of a vocabulary of {vocab_size}, whose last id is padding and no token, so "
            f"there are not so many to keep; write at most {vocab_size - 1}, or teacher_cache=hidden"
        )
    return {
        "ids": Column("uint16" if vocab_size <= 1 << 16 else "int32", top_k),
        "log_probs": Column(params["dtype"], top_k),
        "log_tails": Column(params["dtype"], len(params["temperatures"])),
    }


def _last_layer(params: dict[str, Any], teacher: FrozenTeacher) -> str | None:
    """The column with the last layer's output: without a norm before the head, that is what the head sees."""
    if not params.get("last_layer", False):
        return None
    return "last_layer" if teacher.config.norm == "pre" else "hidden"


def _ask(teacher: FrozenTeacher, batch: Batch, params: dict[str, Any], chunk_size: int) -> dict[str, Tensor]:
    """What the teacher says at the real positions of a batch, row by row: a tensor a column."""
    import torch

    from kdlab.objectives.reduce import project
    from kdlab.types import TopK

    seen = teacher(batch)
    hidden_ND = seen.decoder_ND
    if params["kind"] == "hidden":
        return {"hidden": hidden_ND, "last_layer": seen.decoder_layers[-1]}
    temperatures = tuple(float(temperature) for temperature in params["temperatures"])
    with torch.no_grad(), teacher.head() as head:
        pieces = [
            TopK.of(project(piece_ND, head, teacher.dtype), params["top_k"], temperatures)
            for piece_ND in hidden_ND.split(chunk_size)
        ]
    return {
        "ids": torch.cat([piece.ids_NK for piece in pieces]),
        "log_probs": torch.cat([piece.log_probs_NK for piece in pieces]),
        "log_tails": torch.cat([piece.log_tails_NI for piece in pieces]),
    }


def _announce(out: Path, total: int, done: int, per_position: int, *, others: str) -> None:
    """Says what will be on disk, before it is; refuses what does not fit, and names `others` that take less."""
    needed, free = (total - done) * per_position, shutil.disk_usage(out).free
    runtime.say(
        f"cache_teacher: {total:,} positions x {per_position:,} bytes = {_size(total * per_position)} on disk"
        + (f", of which {_size(done * per_position)} are there" if done else "")
    )
    if needed > free:
        raise UserError(
            f"the teacher cache still needs {_size(needed)} but the disk of {out.parent} has {_size(free)} free, "
            "so it would fail half-way; free some space, choose another disk with paths.store=<folder>, "
            f"teacher_cache.dtype=bf16, {others}or teacher_cache=none, which asks the teacher every time"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
