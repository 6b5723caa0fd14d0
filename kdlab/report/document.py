"""What a report consists of, before it is Markdown, HTML or LaTeX: titles, sentences, tables of text, pictures."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `labels` columns are labels, all others numbers. `groups`: rows that begin a block."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    notes: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """A drawing as SVG."""

    title: str
    svg: str


@dataclass(frozen=True)
class Document:
    """A whole report; pictures need the runs, so only HTML, which is not kept, shows them."""

    title: str
    paragraphs: list[str]
    tables: list[Table]
    pictures: list[Picture] = field(default_factory=list)


class Footnotes:
    """Numbers for remarks, each said once however often it is marked."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """` [n]`, to be put behind what the remark is about."""
        if text not in self._texts:
            self._texts.append(text)
        return f" [{self._texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        """The remarks in the order of their numbers."""
        return [f"[{number}] {text}" for number, text in enumerate(self._texts, 1)]
