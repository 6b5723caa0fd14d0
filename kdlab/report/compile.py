"""From results to a document: the experiment's own tables first, then all that there is, then what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from kdlab.report import curves, plots, summary
from kdlab.report.collect import Row
from kdlab.report.document import Document
from kdlab.report.grid import grid
from kdlab.report.layout import Layout
from kdlab.report.results import DONE, Result

LEGEND = (
    "Mean ± sample standard deviation over seeds (number of seeds); a number alone is one seed. Gain over no KD: from "
    "the student alone of the same seed; p: paired bootstrap of sacreBLEU (1,000 samples, seed 12345), all seeds."
)


def compile_report(title: str, results: Sequence[Result], layouts: Sequence[Layout], rows: Sequence[Row]) -> Document:
    """The report. Its tables and paragraphs depend on results.csv and the experiment's own files alone, its pictures
    also on the runs."""
    tables = [grid(layout, results) for layout in layouts]
    if results:
        tables += [*summary.quality(results), summary.costs(results)]
    drawn = [picture for layout in layouts for picture in curves.pictures(layout, results)]
    return Document(title, [*_paragraphs(results)], tables, drawn + plots.pictures(results, rows))


def _paragraphs(results: Sequence[Result]) -> list[str]:
    if not results:
        return ["Nothing has run yet."]
    done = {one.key: one for one in results if one.state == DONE}
    cpu = sum(one.cpu_hours or 0.0 for one in done.values())
    gpu = sum(one.gpu_hours or 0.0 for one in done.values())
    told = f"{len(done)} evaluated models; training took {cpu:.3g} CPU-hours" + (
        f", {gpu:.3g} GPU-hours." if gpu else "."
    )
    return [told, *summary.failures(results), LEGEND]
