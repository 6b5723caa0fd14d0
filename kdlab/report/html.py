"""A report as one HTML page that needs nothing beside itself: styles and pictures are inside, no address is."""

from __future__ import annotations

from html import escape

from kdlab.report.document import Document, Picture, Table

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { margin: 0 auto; padding: 1rem; max-width: 1200px; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
p, li { overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th.label, td.label { text-align: left; }
thead th { border-bottom: 2px solid #444; } tbody tr.group td { border-top: 1px solid #bbb; }
ul { font-size: .85rem; color: #444; padding-left: 1.2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
"""
# Says nothing of what is outside a figure: a notebook has pictures of its own.
FIGURE = """
figure { margin: 0; } figcaption { font-weight: 600; font-size: .95rem; }
figure svg { width: 100%; height: auto; max-width: 640px; font: 12px system-ui, sans-serif; background: #fff; }
figure .grid { stroke: #e4e4e4; } figure .axis { stroke: #444; fill: none; }
figure .line { fill: none; stroke-width: 1.8; }
"""


def render(document: Document) -> str:
    """The page."""
    tables = "\n".join(_table(table) for table in document.tables)
    drawn = "\n".join(map(_figure, document.pictures))
    pictures = f'<h2>Pictures</h2>\n<div class="pictures">\n{drawn}\n</div>\n' if drawn else ""
    told = "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in document.paragraphs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(document.title)}</title>
<style>{STYLE}{FIGURE}</style>
</head>
<body>
<h1>{escape(document.title)}</h1>
{told}
{pictures}{tables}
</body>
</html>
"""


def figure(picture: Picture) -> str:
    """One picture with the styles that it needs, to be shown inside another page, such as a notebook."""
    return f"<style>{FIGURE}</style>\n{_figure(picture)}"


def _figure(picture: Picture) -> str:
    return f"<figure><figcaption>{escape(picture.title)}</figcaption>\n{picture.svg}\n</figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th{_kind(number, table)}>{escape(cell)}</th>" for number, cell in enumerate(table.header))
    body = "\n".join(_row(number, row, table) for number, row in enumerate(table.rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n" + (f"<ul>{notes}</ul>" if notes else "")
    )


def _row(number: int, row: list[str], table: Table) -> str:
    group = ' class="group"' if number in table.groups else ""
    return f"<tr{group}>" + "".join(f"<td{_kind(n, table)}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"


def _kind(column: int, table: Table) -> str:
    return ' class="label"' if column < table.labels else ""
