"""claims.md: every claim with its comparisons and its verdict, whatever that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev

from kdlab import files, runtime
from kdlab.report import claims, comparisons
from kdlab.report.claims import Claim, Comparison, Figure
from kdlab.report.comparisons import Line
from kdlab.report.document import Footnotes
from kdlab.report.measured import Measured
from kdlab.report.table import aligned
from kdlab.report.verdict import NOT_RUN, TOLD, VERDICTS, over_comparisons, over_tests

Judged = tuple[Claim, str, list[list[Line]]]  # a claim, its verdict, the lines of each of its comparisons


def report(folder: Path, store: Path) -> None:
    """Writes claims.md and comparisons.csv of a folder with claims.yaml. Raises: UserError."""
    measured = Measured(folder, store)
    judged: list[Judged] = []
    for claim in claims.read(folder):
        lines = [measured.lines(claim, comparison) for comparison in claim.comparisons]
        judged.append((claim, over_comparisons(claim.rule, _verdicts(lines)), lines))
    comparisons.write(folder, [line for _, _, some in judged for one in some for line in one])
    files.write_text(folder / "claims.md", page(judged, measured.with_results()))
    told = ", ".join(f"{sum(one == verdict for _, one, _ in judged)} {verdict}" for verdict in VERDICTS)
    runtime.say(f"{folder / 'claims.md'} (and {comparisons.FILE}): of {len(judged)} claims {told}")


def page(judged: Sequence[Judged], reported: Collection[str]) -> str:
    """The whole page; the same results give the same bytes.

    Args:
        reported: experiments that have results, and so a report.
    """
    header = ["claim", "", "verdict", "differences", *VERDICTS]
    rows = []
    for claim, verdict, lines in judged:
        found = _verdicts(lines)
        counts = [str(found.count(one) or "") for one in VERDICTS]
        rows.append([claim.id, claim.claim, verdict, _effects(lines), *counts])
    parts = [
        "# Claims, and what the runs say of them",
        "Made by `python -m kdlab.report experiments` from claims.yaml, the results.csv of the experiments and "
        f"{comparisons.FILE}. Nothing is left out because of its verdict.",
        "## The rules",
        *TOLD,
        "## Verdicts",
        "Differences: the least and the greatest mean over seeds, BLEU. The last columns count comparisons.",
        "\n".join(aligned(header, rows, labels=3)),
        *(part for claim, verdict, lines in judged for part in _section(claim, verdict, lines, reported)),
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(lines: Sequence[Sequence[Line]]) -> list[str]:
    return [over_tests([line.verdict for line in one]) for one in lines]


def _section(claim: Claim, verdict: str, lines: Sequence[Sequence[Line]], reported: Collection[str]) -> list[str]:
    parts = [f"## {claim.id}: {claim.claim}", claim.says, f"The deck: {claim.deck}"]
    rule = f" (rule: {claim.rule})" if len(lines) > 1 else ""
    parts.append(f"Verdict: **{verdict}**{rule}." + (f" {claim.note}" if claim.note else ""))
    if claim.would_test:
        parts.append(f"What would test it: {claim.would_test}")
    if experiments := _experiments(claim):
        told = [
            f"[{name}]({name}/report.md)" if name in reported else f"{name} (no results yet)" for name in experiments
        ]
        parts.append(f"Runs: {', '.join(told)}.")
    return parts + (_table(claim, lines) if lines else [])


def _experiments(claim: Claim) -> list[str]:
    asked = [one.experiments() for one in claim.comparisons if isinstance(one, Comparison)]
    return list(dict.fromkeys(name for names in asked for name in names))


def _table(claim: Claim, lines: Sequence[Sequence[Line]]) -> list[str]:
    notes, rows = Footnotes(), []
    for comparison, some in zip(claim.comparisons, lines, strict=True):
        alike = len({(line.verdict, line.remark) for line in some}) == 1 and some[0].verdict == NOT_RUN
        for number, line in enumerate(some[:1] if alike else some):
            told = [comparison.name, _expected(comparison)] if number == 0 else ["", ""]
            mark = notes.mark(f"{line.remark}.") if line.remark else ""
            rows.append([*told, "" if alike else line.test, *_effect(line, comparison), line.verdict + mark])
    header = ["comparison", "expected", "test", "seeds", "difference", "by seed", "95 %", "p", "says"]
    table = "\n".join(aligned(header, rows, labels=3))
    return [table, *(["\n".join(f"- {note}" for note in notes.lines())] if notes.lines() else [])]


def _expected(comparison: Comparison | Figure) -> str:
    margin = f"{comparison.margin:g}"
    if comparison.expect in ("similar", "at_most"):
        return f"{'within' if comparison.expect == 'similar' else 'at most'} {margin}"
    if comparison.expect == "greater":
        return f"> {margin}"
    return f"< {'-' if comparison.margin and isinstance(comparison, Comparison) else ''}{margin}"


def _effect(line: Line, comparison: Comparison | Figure) -> list[str]:
    """Seeds, mean and standard deviation, each seed, interval, p."""
    if isinstance(comparison, Figure):
        return ["", f"{comparison.value:g}", "", "", ""]
    if not line.differences:
        return [""] * 5
    several = len(line.differences) > 1
    found = line.resampled
    return [
        " ".join(map(str, line.seeds)),
        _signed(fmean(line.differences)) + (f" ± {stdev(line.differences):.2f}" if several else ""),
        " ".join(map(_signed, line.differences)) if several else "",
        f"{_signed(found.low)} to {_signed(found.high)}" if found else "",
        f"{found.p_value:.3f}" if found else "",
    ]


def _effects(lines: Sequence[Sequence[Line]]) -> str:
    """The range of the mean differences."""
    means = [fmean(line.differences) for one in lines for line in one if line.differences]
    shown = [_signed(end) for end in (min(means), max(means))] if means else []
    return " to ".join(dict.fromkeys(shown))


def _signed(value: float) -> str:
    shown = f"{value:+.2f}"
    return shown if float(shown) else "0.00"
