"""Stage prepare_corpus: raw parallel text in, a folder with tokenizer, token ids, test sets and a report out.

The raw text is read once: pairs that pass the rules on text go to a scratch file, from which the vocabulary is learnt
and which is then encoded. Memory holds one batch, 64-bit hashes of the pairs, the vocabulary's sample and the held-out
sets; it does not grow with the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.errors import UserError
from kdlab.files import write_json
from kdlab.runtime import bar, progress, say

if TYPE_CHECKING:
    from kdlab.data.cleaning import Cleaner
    from kdlab.data.corpus import Pair, Source
    from kdlab.data.tokenizer import Tokenizer

VERSION = 1
ROWS_PER_BATCH = 8192


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Prepares a corpus.

    Args:
        inputs: teacher (a model folder) where the corpus adopts its tokenizer.
        params: identities (of the sources: content, not paths), cleaning (fields of CleaningRules), tokenizer
            {model, joint, vocab_size, sample_lines}, or {vocab_size, sha256} for a given one, {} with a teacher; seed;
            label_tag (a text that must be one piece of the source side) where there is one.
        local: sources {train: [node, ...], valid: node or [node], tests: {name: node}} (a node is a `_target_` of
            data/corpus.py and its arguments), tokenizer_path (folder of a given tokenizer, or None).

    Writes tokenizer/, train.arrow, valid.arrow, tests/<name>.jsonl ({"src", "ref"}), report.json.
    Raises: UserError for bad files, no training pair left, no validation pair, an impossible vocabulary.
    """
    from kdlab.data.cleaning import Cleaner, CleaningRules, HeldOut
    from kdlab.data.tokenizer import Tokenizer

    sources = local["sources"]
    given = inputs["teacher"] / "tokenizer" if "teacher" in inputs else local["tokenizer_path"]
    if given and "label_tag" in params:  # before the text is read
        Tokenizer.open(given).src_symbol_id(params["label_tag"])
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    valid = _held_out("valid", sources["valid"])
    tests = {name: _held_out(name, node) for name, node in sources["tests"].items()}
    held_out = [pair for pairs in (valid, *tests.values()) for pair in pairs]
    read = [_source(node) for node in _nodes(sources["train"])]
    source_only = any(getattr(source, "source_only", 0.0) for source in read)
    cleaner = Cleaner(CleaningRules(**params["cleaning"]), HeldOut(*_sides(held_out)), source_only=source_only)

    kept_text = scratch / "kept_text.arrow"
    per_source = _clean(read, cleaner, kept_text)
    if "teacher" in inputs:
        tokenizer = Tokenizer.open(inputs["teacher"] / "tokenizer")
    else:
        tokenizer = _tokenizer(params, local["tokenizer_path"], kept_text)
    tokenizer.save(out / "tokenizer")
    train = _encode_train(kept_text, out / "train.arrow", tokenizer, cleaner)
    _refuse_nothing_left(cleaner, train["rows"])
    kept_text.unlink()

    summary = {
        "rows_read": cleaner.num_read,
        "rows_kept": train["rows"],
        "dropped": cleaner.dropped,
        "train": train,
        "valid": _encode_valid(valid, out / "valid.arrow", tokenizer),
        "tests": {name: {"lines": _write_test(out / "tests", name, pairs)} for name, pairs in tests.items()},
        "vocabulary": {
            "joint": tokenizer.joint,
            "src_vocab_size": tokenizer.src_vocab_size,
            "tgt_vocab_size": tokenizer.tgt_vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
    }
    write_json(out / "report.json", {**summary, "rows_read_per_source": per_source, "examples": cleaner.examples})
    told = ", ".join(f"{rule} {count:,}" for rule, count in cleaner.dropped.items() if count) or "nothing"
    alone = f", {train['rows_without_target']:,} of them without a target" if "rows_without_target" in train else ""
    say(f"corpus: kept {train['rows']:,} of {cleaner.num_read:,} pairs{alone} (dropped: {told})")
    return summary


def identities(sources: dict[str, Any]) -> dict[str, Any]:
    """What determines the content of sources, for the key: hashes of files, hub revisions, parameters; never paths."""
    return {
        "train": [_source(node).identity() for node in _nodes(sources["train"])],
        "valid": [_source(node).identity() for node in _nodes(sources["valid"])],
        "tests": {name: _source(node).identity() for name, node in sources["tests"].items()},
    }


def _clean(sources: Iterable[Source], cleaner: Cleaner, path: Path) -> list[int]:
    """Writes the pairs that pass the rules on text, "" for no target; how many pairs each source had."""
    import numpy as np
    import pyarrow as pa

    from kdlab.data.arrow import TableWriter
    from kdlab.data.cleaning import hash_lines

    text = {"src_text": pa.string(), "tgt_text": pa.string()}
    num_rows: list[int] = []
    with TableWriter(path, pa.schema({"row_id": pa.int64(), "src_hash": pa.uint64(), **text})) as kept:
        for source in sources:
            before = cleaner.num_read
            for batch in _batches(progress(source.lines(), what="reading", unit="pairs")):
                src, tgt = [pair[0] for pair in batch], [pair[1] for pair in batch]
                row_id = np.arange(cleaner.num_read, cleaner.num_read + len(batch))
                src_hash = hash_lines(src)
                keep = cleaner.keep_text(row_id, src, tgt, src_hash)
                chosen = {"src_text": _pick(src, keep), "tgt_text": [text or "" for text in _pick(tgt, keep)]}
                kept.write({"row_id": row_id[keep], "src_hash": src_hash[keep], **chosen})
            num_rows.append(cleaner.num_read - before)
    _refuse_nothing_left(cleaner, cleaner.num_read - sum(cleaner.dropped.values()))
    return num_rows


def _tokenizer(params: dict[str, Any], given: str | None, kept_text: Path) -> Tokenizer:
    from kdlab.data.arrow import stream_batches
    from kdlab.data.tokenizer import Tokenizer

    wanted = params["tokenizer"]
    if given:
        tokenizer = Tokenizer.open(given)
        sizes = {tokenizer.src_vocab_size, tokenizer.tgt_vocab_size}
        if sizes != {wanted["vocab_size"]}:
            raise UserError(
                f"vocab_size={wanted['vocab_size']}, but the tokenizer in {given} has {sorted(sizes)}, so the "
                f"model's embeddings would not fit; write vocab_size={max(sizes)}"
            )
        return tokenizer

    def lines(column: str) -> Iterator[str]:
        every = (text for batch in stream_batches(kept_text) for text in batch.column(column).to_pylist())
        return (text for text in every if text)  # not the targets that are not there

    if next(lines("tgt_text"), None) is None:
        raise UserError(
            "no training line has a target, so no vocabulary can be learnt for the target language; add text with "
            "targets to data.train, or name a finished tokenizer: data.tokenizer.path=<folder>"
        )

    say(f"learning a vocabulary of {wanted['vocab_size']:,} from at most {wanted['sample_lines']:,} pairs")
    shape = {key: wanted[key] for key in ("vocab_size", "joint", "model", "sample_lines")}
    symbols = [params["label_tag"]] if "label_tag" in params else []
    return Tokenizer.train(
        lines("src_text"), lines("tgt_text"), **shape, seed=params.get("seed", 0), src_symbols=symbols
    )


def _encode_train(kept_text: Path, path: Path, tokenizer: Tokenizer, cleaner: Cleaner) -> dict[str, Any]:
    """Encodes the scratch file, drops by length and writes the training rows; their token counts."""
    import numpy as np
    import pyarrow as pa

    from kdlab.data.arrow import TableWriter, stream_batches
    from kdlab.data.prepared import ROWS_SCHEMA

    tokens = _Tokens()
    total = cleaner.num_read - sum(cleaner.dropped.values())
    with TableWriter(path, ROWS_SCHEMA) as rows, bar(what="encoding", total=total, unit="pairs") as shown:
        for batch in stream_batches(kept_text):
            row_id = batch.column("row_id").to_numpy()
            src, tgt = batch.column("src_text").to_pylist(), batch.column("tgt_text").to_pylist()
            src_ids = tokenizer.encode_src(src)
            encoded = iter(tokenizer.encode_tgt([text for text in tgt if text]))
            tgt_ids = [next(encoded) if text else [] for text in tgt]
            src_len, tgt_len = (np.fromiter(map(len, ids), np.int32, len(ids)) for ids in (src_ids, tgt_ids))
            keep = cleaner.keep_tokens(row_id, src, tgt, src_len, tgt_len)
            kept = batch.filter(pa.array(keep))
            columns = {name: kept.column(name) for name in ("row_id", "src_hash", "src_text", "tgt_text")}
            rows.write({**columns, **tokens.counted(_pick(src_ids, keep), _pick(tgt_ids, keep))})
            shown.update(len(batch))
    return tokens.report()


def _encode_valid(pairs: list[tuple[str, str]], path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    import numpy as np

    from kdlab.data.arrow import TableWriter
    from kdlab.data.cleaning import hash_lines
    from kdlab.data.prepared import ROWS_SCHEMA

    tokens, src, tgt = _Tokens(), *_sides(pairs)
    with TableWriter(path, ROWS_SCHEMA) as rows:
        ids = tokens.counted(tokenizer.encode_src(src), tokenizer.encode_tgt(tgt))
        text = {"src_text": src, "tgt_text": tgt}
        rows.write({"row_id": np.arange(len(pairs)), "src_hash": hash_lines(src), **ids, **text})
    return tokens.report()


def _write_test(folder: Path, name: str, pairs: list[tuple[str, str]]) -> int:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"src": src, "ref": ref}, ensure_ascii=False) + "\n" for src, ref in pairs]
    (folder / f"{name}.jsonl").write_bytes("".join(lines).encode())
    return len(pairs)


class _Tokens:
    """Token totals of the rows that passed by, EOS included."""

    def __init__(self) -> None:
        self._rows, self._tokens, self._unknown, self._longest = [0, 0], [0, 0], [0, 0], [0, 0]

    def counted(self, src_ids: list[list[int]], tgt_ids: list[list[int]]) -> dict[str, list[list[int]]]:
        """The two columns, after counting them."""
        for side, ids in enumerate((src_ids, tgt_ids)):
            self._rows[side] += sum(map(bool, ids))
            self._tokens[side] += sum(map(len, ids))
            self._unknown[side] += sum(row.count(1) for row in ids)  # <unk>, tokenizer.UNK_ID
            self._longest[side] = max([self._longest[side], *map(len, ids)])
        return {"src": src_ids, "tgt": tgt_ids}

    def report(self) -> dict[str, Any]:
        told: dict[str, Any] = {"rows": self._rows[0]}
        if without := self._rows[0] - self._rows[1]:
            told["rows_without_target"] = without
        for side, name in enumerate(("src", "tgt")):
            told[f"{name}_tokens"] = self._tokens[side]
            told[f"mean_{name}_len"] = round(self._tokens[side] / max(self._rows[side], 1), 3)
            told[f"longest_{name}_len"] = self._longest[side]
            told[f"{name}_unknown_rate"] = round(self._unknown[side] / max(self._tokens[side], 1), 8)
        return told


def _held_out(name: str, nodes: Any) -> list[tuple[str, str]]:
    """A validation or test set, all of it: these are small."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UserError(
            f"the test set name '{name}' cannot be a file name, and its results are files; write e.g. "
            f"'{re.sub('[^A-Za-z0-9_.-]+', '_', name)}' for the key and keep the full name inside the node"
        )
    lines = [pair for node in _nodes(nodes) for pair in _source(node).lines()]
    pairs = [(src, tgt) for src, tgt in lines if tgt is not None]
    if len(pairs) < len(lines):
        raise UserError(
            f"the set '{name}' has {len(lines) - len(pairs)} lines without a target, on which nothing can be measured; "
            "source-only text belongs to data.train"
        )
    if not pairs:
        raise UserError(f"the set '{name}' has no line, so nothing can be measured on it; name a source that has some")
    return pairs


def _source(node: Any) -> Source:
    from hydra.utils import instantiate

    return instantiate(node)


def _nodes(nodes: Any) -> list[Any]:
    return list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]


def _batches(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    while batch := list(islice(pairs, ROWS_PER_BATCH)):
        yield batch


def _sides(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [src for src, _ in pairs], [tgt for _, tgt in pairs]


def _pick(values: list[Any], keep: Any) -> list[Any]:
    return [value for value, kept in zip(values, keep.tolist(), strict=True) if kept]


def _refuse_nothing_left(cleaner: Cleaner, num_left: int) -> None:
    if num_left:
        return
    counts = ", ".join(f"{rule} {count}" for rule, count in cleaner.dropped.items() if count) or "no line was read"
    raise UserError(
        f"no training pair is left of {cleaner.num_read} ({counts}), so there is nothing to train on; look at the "
        f"sources in data.train and loosen data.cleaning"
    )
