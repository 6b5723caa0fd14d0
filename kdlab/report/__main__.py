"""The command `python -m kdlab.report`: a report of an experiment or of any runs, in seconds, without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kdlab import files, runtime
from kdlab.errors import UserError
from kdlab.report import claims, claims_page, html, latex, layout, markdown, results
from kdlab.report.compile import compile_report
from kdlab.report.gather import collected, run_folders
from kdlab.report.update import update

HELP = """Makes a report of finished, failed and missing runs.

  python -m kdlab.report <folder> [<folder> ...]

Each folder is experiments/<name> (its runs are taken from runs/<name>, if they are there), runs/<name>, or any
folder with runs in it. The first one gets the report: report.md, report.html, report.tex and results.csv, which
holds one row per evaluated model and test set. Rows that are there already stay: where the runs are gone, report.md
is made anew from results.csv alone. tables.yaml beside it lays results out as a published table (published.csv);
kdlab/report/layout.py says how.

The folder experiments itself, which holds claims.yaml, gets claims.md instead: every claim with the comparisons that
test it and a verdict, from the results.csv of its experiments and comparisons.csv (p-values, computed where the store
has the translations' statistics); kdlab/report/claims.py says how claims.yaml is written.

  runs=<folder>         where the runs of experiments/<name> are     (runs)
  store=<folder>        where claims.md finds statistics             (store)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"--help", "-h"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 1
    try:
        runs, store = Path("runs"), Path("store")
        places = []
        for argument in arguments:
            if argument.startswith("runs="):
                runs = Path(argument.removeprefix("runs="))
            elif argument.startswith("store="):
                store = Path(argument.removeprefix("store="))
            else:
                places.append(Path(argument))
        if len(places) == 1 and (places[0] / claims.FILE).exists():
            claims_page.report(places[0], store)
        else:
            report(places, runs)
    except UserError as error:
        runtime.say(str(error))
        return 1
    return 0


def report(places: Sequence[Path], runs: Path) -> None:
    """Writes the report of some folders into the first. Raises: UserError."""
    for place in places:
        if not place.is_dir():
            raise UserError(
                f"{place} is no folder, so there is nothing to report; give experiments/<name>, runs/<name> or a "
                "folder of runs (the options are runs=<folder> and store=<folder>; see --help)"
            )
    if not places:
        raise UserError("no folder is given, so there is nothing to report; give experiments/<name> or runs/<name>")
    out = places[0]
    layouts = layout.read(out)
    sources = [source for place in places for source in _sources(place, runs)]
    rows = collected(sources)
    named = {name for one in layouts for name in one.named()}
    found = update(out, rows, named, places[1:])
    for name in sorted(named - {"model", "test", "seed"} if found else ()):
        if all(result.fact(name) is None for result in found):
            runtime.say(
                f"{out / layout.FILE} asks for {name}, which no run has; is it written as in the configuration?"
            )
    document = compile_report(out.resolve().name, found, layouts, rows)
    for name, render in {"report.md": markdown.render, "report.tex": latex.render, "report.html": html.render}.items():
        files.write_text(out / name, render(document))
    done = sum(result.state == results.DONE for result in found)
    runtime.say(f"{out / 'report.md'} (and .html, .tex, results.csv): {done} of {len(found)} results are there")


def _sources(place: Path, runs: Path) -> list[Path]:
    """Where the runs of a folder are: an experiment's in runs/<name>, none where they are gone."""
    is_experiment = any((place / name).exists() for name in (layout.FILE, "published.csv", "README.md"))
    if not is_experiment:
        return [place] if run_folders(place) or not (place / "results.csv").exists() else []
    inside = runs / place.resolve().name
    return [inside] if inside.is_dir() else []


if __name__ == "__main__":
    sys.exit(main())
