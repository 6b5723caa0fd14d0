"""A report as Markdown that reads well as plain text."""

from __future__ import annotations

from kdlab.report.document import Document, Table
from kdlab.report.table import aligned


def render(document: Document) -> str:
    """The whole report; the same document gives the same bytes."""
    parts = [f"# {document.title}", *document.paragraphs]
    for table in document.tables:
        parts += [f"## {table.title}", "\n".join(_table(table))]
        parts += ["\n".join(f"- {_escaped(note)}" for note in table.notes)] if table.notes else []
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> list[str]:
    body = [[_escaped(cell) for cell in row] for row in table.rows]
    return aligned([_escaped(cell) for cell in table.header], body, labels=table.labels)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
