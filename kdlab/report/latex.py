"""A report's tables as LaTeX (packages booktabs, longtable), to be taken into a paper with \\input."""

from __future__ import annotations

import re

from kdlab.report.document import Document, Table

SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
SPECIAL |= {">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
LETTERS = re.compile("|".join(map(re.escape, SPECIAL)))


def render(document: Document) -> str:
    """All tables, one after the other."""
    head = f"% {document.title}; needs \\usepackage{{booktabs,longtable}}"
    return "\n\n".join([head, *(_table(table) for table in document.tables)]) + "\n"


def _table(table: Table) -> str:
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [rf"\begin{{longtable}}{{{columns}}}", rf"\caption{{{_escaped(table.title)}}}\\", r"\toprule"]
    lines += [_row(table.header), r"\midrule", r"\endhead"]
    for number, row in enumerate(table.rows):
        if number and number in table.groups:
            lines.append(r"\addlinespace")
        lines.append(_row(row))
    lines.append(r"\bottomrule")
    width = len(table.header)
    lines += [
        rf"\multicolumn{{{width}}}{{p{{\linewidth}}}}{{\footnotesize {_escaped(note)}}}\\" for note in table.notes
    ]
    return "\n".join([*lines, r"\end{longtable}"])


def _row(cells: list[str]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + r" \\"


def _escaped(text: str) -> str:
    # `{}` first: a row that begins with `[1]` would be read as an argument of the `\\` before it
    escaped = re.sub(LETTERS, lambda found: SPECIAL[found.group()], text)
    escaped = re.sub(r"(?<![\w.])[+-](?=\d)", lambda found: f"${found.group()}$", escaped)
    return "{}" + escaped if escaped.startswith("[") else escaped
