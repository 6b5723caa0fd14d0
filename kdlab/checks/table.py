"""What a check found, and the table of all of them; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

HEADER = ("check", "holds", "found", "limit", "figure, and what it was run on")


@dataclass(frozen=True)
class Finding:
    """One check: it holds where `found` is at most `limit`; without a limit it does not apply.

    Args:
        what: which figure was found, and on what.
        meaning: of a failure, and where to look.
    """

    name: str
    found: float
    limit: float | None
    what: str
    meaning: str = ""

    @property
    def holds(self) -> bool | None:
        """None: it does not apply. Not-a-number holds nothing."""
        return None if self.limit is None else self.found <= self.limit

    def failure(self) -> str:
        """One line for a check that fails."""
        return f"{self.name} fails: {self.meaning} Found {self.found:.2g}, at most {self.limit:g}: {self.what}."


def worst(*figures: float) -> float:
    """The greatest; not-a-number where one is (`max` would lose it)."""
    return float("nan") if any(figure != figure for figure in figures) else max(figures)


def does_not_apply(name: str, why: str) -> Finding:
    """A check without anything to look at."""
    return Finding(name, 0.0, None, why)


def render(findings: Sequence[Finding]) -> str:
    """Aligned columns that are Markdown too."""
    lines = [HEADER, *(_cells(finding) for finding in findings)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def report(title: str, origins: Mapping[str, str], findings: Sequence[Finding]) -> str:
    """The file check.md."""
    found = "".join(f"- {what}: {origin}\n" for what, origin in origins.items())
    failures = "".join(f"\n{finding.failure()}\n" for finding in findings if finding.holds is False)
    return f"# Check of {title}\n\n{found}\n{render(findings)}{failures}"


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Plain values for check.json; a figure that is not finite becomes text."""
    rows = []
    for finding in findings:
        found: Any = finding.found if abs(finding.found) < float("inf") else str(finding.found)
        rows.append({**asdict(finding), "found": found, "holds": finding.holds})
    return rows


def _cells(finding: Finding) -> tuple[str, ...]:
    if finding.limit is None:
        return finding.name, "does not apply", "-", "-", finding.what
    return finding.name, "yes" if finding.holds else "NO", f"{finding.found:.2g}", f"{finding.limit:g}", finding.what
