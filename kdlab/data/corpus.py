"""Sources of parallel text, one class each; light to import (a configuration is checked with it).

A source has `lines()`, pairs (source, target) in a fixed order; `identity()`, plain values that determine its
content and enter the artefact's key; `check()`, problems that can be told without reading whole files. Where some of
its lines have no target (None in the pair), `source_only` says which share; such text is for training alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Protocol, final

from kdlab.data.lines import check_text, file_problem, read_lines
from kdlab.errors import UserError, did_you_mean
from kdlab.files import sha256_file

Pair = tuple[str, str | None]  # None: source-only text


class Source(Protocol):
    """What every source of parallel text offers."""

    def lines(self) -> Iterator[Pair]: ...
    def identity(self) -> dict[str, Any]: ...
    def check(self) -> list[str]: ...


@final
@dataclass(frozen=True)
class AlignedText:
    """Two text files whose lines with the same number belong together."""

    src: str
    tgt: str

    def lines(self) -> Iterator[Pair]:
        pairs = zip_longest(read_lines(self.src), read_lines(self.tgt))
        for number, (src, tgt) in enumerate(pairs, 1):
            if src is None or tgt is None:
                longer, shorter = (self.tgt, self.src) if src is None else (self.src, self.tgt)
                raise UserError(
                    f"{longer}, line {number}: has no partner, because {shorter} ends after line {number - 1}; pairs "
                    f"would be shifted somewhere above; write two files with equally many lines"
                )
            yield src, tgt

    def identity(self) -> dict[str, Any]:
        return {"kind": "aligned_text", "src": sha256_file(Path(self.src)), "tgt": sha256_file(Path(self.tgt))}

    def check(self) -> list[str]:
        return [problem for path in (self.src, self.tgt) if (problem := file_problem(path))]


@final
@dataclass(frozen=True)
class SourceText:
    """One text file of source lines alone (monolingual text): the teacher's pseudo-labels are their only targets."""

    src: str
    source_only: ClassVar[float] = 1.0

    def lines(self) -> Iterator[Pair]:
        return ((line, None) for line in read_lines(self.src))

    def identity(self) -> dict[str, Any]:
        return {"kind": "source_text", "src": sha256_file(Path(self.src))}

    def check(self) -> list[str]:
        return [problem] if (problem := file_problem(self.src)) else []


@final
@dataclass(frozen=True)
class Tsv:
    """One file of tab-separated columns, counted from 0; no quoting, no header."""

    path: str
    src_column: int = 0
    tgt_column: int = 1

    def lines(self) -> Iterator[Pair]:
        needed = max(self.src_column, self.tgt_column) + 1
        for number, line in enumerate(read_lines(self.path), 1):
            columns = line.split("\t")
            if len(columns) < needed:
                raise UserError(
                    f"{self.path}, line {number}: {len(columns)} tab-separated column(s), but column {needed - 1} "
                    f"(counted from 0) is read; repair the line or change src_column and tgt_column"
                )
            yield columns[self.src_column], columns[self.tgt_column]

    def identity(self) -> dict[str, Any]:
        columns = {"src_column": self.src_column, "tgt_column": self.tgt_column}
        return {"kind": "tsv", "file": sha256_file(Path(self.path)), **columns}

    def check(self) -> list[str]:
        problems = [problem] if (problem := file_problem(self.path)) else []
        if min(self.src_column, self.tgt_column) < 0 or self.src_column == self.tgt_column:
            problems.append(
                f"src_column={self.src_column} and tgt_column={self.tgt_column} must be two different numbers from 0 "
                f"on, or source and target are the same text; write e.g. src_column=0 tgt_column=1"
            )
        return problems


@final
@dataclass(frozen=True)
class Jsonl:
    """One JSON object a line; a key may lead inwards: `translation.de`."""

    path: str
    src_key: str
    tgt_key: str

    def lines(self) -> Iterator[Pair]:
        for number, line in enumerate(read_lines(self.path), 1):
            where = f"{self.path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where}: no JSON ({error.msg} at column {error.colno}), so the pair is lost; "
                    f"write one JSON object on each line"
                ) from error
            yield _value(row, self.src_key, where), _value(row, self.tgt_key, where)

    def identity(self) -> dict[str, Any]:
        keys = {"src_key": self.src_key, "tgt_key": self.tgt_key}
        return {"kind": "jsonl", "file": sha256_file(Path(self.path)), **keys}

    def check(self) -> list[str]:
        return [problem] if (problem := file_problem(self.path)) else []


@final
@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub (or a local folder of one), streamed through `datasets`.

    `revision` should be a commit: without one the same configuration may mean other text next year.
    """

    path: str
    split: str
    src_key: str
    tgt_key: str
    name: str | None = None
    revision: str | None = None

    def lines(self) -> Iterator[Pair]:
        import datasets

        title = f"{self.path}{f'/{self.name}' if self.name else ''}, split {self.split}"
        try:
            rows = datasets.load_dataset(self.path, self.name, split=self.split, revision=self.revision, streaming=True)
        except Exception as error:  # `datasets` raises a dozen kinds for a wrong name, and others without a network
            raise UserError(
                f"{title} cannot be opened ({type(error).__name__}: {error}), so there is no text; check path, name, "
                f"split and revision, or fetch the files and use data=files"
            ) from error
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                where = f"{title}, row {number}"
                yield _value(row, self.src_key, where), _value(row, self.tgt_key, where)
        except (OSError, RuntimeError, ConnectionError) as error:
            raise UserError(
                f"{title} broke off after row {number} ({type(error).__name__}: {error}), so the corpus would be cut "
                "short; run the same command again, or fetch the files and use data=files"
            ) from error

    def identity(self) -> dict[str, Any]:
        place = Path(self.path)
        found = sorted(path for path in place.rglob("*") if path.is_file())  # none of a name on the hub
        content = {path.relative_to(place).as_posix(): sha256_file(path) for path in found}
        where: dict[str, Any] = {"files": content} if place.is_dir() else {"path": self.path}
        where |= {"name": self.name, "split": self.split, "revision": self.revision}
        return {"kind": "hub", **where, "src_key": self.src_key, "tgt_key": self.tgt_key}

    def check(self) -> list[str]:
        return []


@final
@dataclass(frozen=True)
class Toy:
    """Sentences of the built-in German-English grammar (toy.py); the last of them, a share, without target."""

    split: str
    num_lines: int
    seed: int
    source_only: float = 0.0

    def lines(self) -> Iterator[Pair]:
        from kdlab.data import toy

        num_pairs = self.num_lines - round(self.source_only * self.num_lines)
        pairs = toy.generate(self.split, self.num_lines, self.seed)
        return ((src, tgt if number < num_pairs else None) for number, (src, tgt) in enumerate(pairs))

    def identity(self) -> dict[str, Any]:
        from kdlab.data import toy

        size = {"split": self.split, "num_lines": self.num_lines, "seed": self.seed}
        without = {"source_only": self.source_only} if self.source_only else {}
        return {"kind": "toy", "version": toy.VERSION, **size, **without}

    def check(self) -> list[str]:
        if self.num_lines > 0:
            return []
        return [f"num_lines of the toy must be at least 1, got {self.num_lines}: no text; write e.g. num_lines: 1000"]


@final
@dataclass(frozen=True)
class SacrebleuTest:
    """A test set under sacreBLEU's own name, with its first reference; fetched by sacreBLEU when it is not there.

    The name is never changed: `wmt14` (2,737 lines) and `wmt14/full` (3,003 lines) are different sets.
    """

    name: str
    langpair: str

    def lines(self) -> Iterator[Pair]:
        from sacrebleu.dataset import DATASETS

        if problems := self.check():
            raise UserError(problems[0])
        try:
            files = (
                DATASETS[self.name].get_source_file(self.langpair),
                *DATASETS[self.name].get_reference_files(self.langpair),
            )
        except Exception as error:  # no network, a wrong checksum, a full disk: sacreBLEU wraps none of them
            raise UserError(
                f"sacreBLEU cannot fetch {self.name} {self.langpair} ({type(error).__name__}: {error}), so nothing can "
                f"be scored on it; run `sacrebleu -t {self.name} -l {self.langpair} --echo src` with a network"
            ) from error
        for src, tgt in AlignedText(files[0], files[1]).lines():
            yield src.strip(), (tgt or "").strip()  # as sacreBLEU itself reads them

    def identity(self) -> dict[str, Any]:
        return {"kind": "sacrebleu", "name": self.name, "langpair": self.langpair}

    def check(self) -> list[str]:
        from sacrebleu.dataset import DATASETS

        if self.name not in DATASETS:
            instead = did_you_mean(self.name, DATASETS) or "; sacrebleu --list shows all names"
            return [f"sacreBLEU knows no test set '{self.name}', so nothing can be scored on it{instead}"]
        if self.langpair not in DATASETS[self.name].langpairs:
            known = ", ".join(sorted(DATASETS[self.name].langpairs))
            return [f"sacreBLEU's {self.name} has no {self.langpair}, so there is nothing to score; it has {known}"]
        return []


def _value(row: Any, key: str, where: str) -> str:
    value = row
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            found = ", ".join(value) if isinstance(value, dict) else repr(value)
            raise UserError(f"{where}: no key '{key}', so one side of the pair is missing; there is: {found}")
        value = value[part]
    return check_text(value, where)
