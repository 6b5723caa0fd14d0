"""Speed and memory of whole optimizer steps against the plain way on Hugging Face's Marian at fp32.

Every contestant is a one-thread process (kd_step_process.py). They run in turn, round after round; a ratio is taken
within a round, from the CPU time of each side's fastest step: what else the machine does makes steps slower, never
faster. Prints a table and exits with 1 where the median over the rounds misses its "at least".

    python tests/bench_kd_step.py --rounds 3 --only "KD slim"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kd_step_process import Entry

PROCESS = Path(__file__).with_name("kd_step_process.py")


@dataclass(frozen=True)
class Contest:
    """kdlab against the plain way: how many times as fast, and what share of its peak memory where that is bounded."""

    name: str
    ours: Entry
    plain: Entry
    at_least: float
    aim: float
    rss_at_most: float | None = None


SLIM, MIXED = Entry("hf", "train"), Entry("hf", "train", batch="mixed", steps=2)
KD, WIDE = Entry("hf", "kd"), Entry("hf", "kd", shape="wide_1x1", steps=2)
BF16 = {"precision": "bf16", "teacher_precision": "bf16"}
CONTESTS = (
    Contest("training slim fp32", Entry("kdlab", "train"), SLIM, 1.20, 1.35),
    Contest("training slim bf16", Entry("kdlab", "train", precision="bf16"), SLIM, 2.1, 2.6),
    Contest("unsorted slim fp32", Entry("kdlab", "train", batch="mixed"), MIXED, 3.0, 3.5),
    Contest("unsorted slim bf16", Entry("kdlab", "train", batch="mixed", precision="bf16"), MIXED, 5.0, 6.0),
    Contest("KD slim fp32", Entry("kdlab", "kd"), KD, 1.35, 1.55, 0.78),
    Contest("KD slim fp32, teacher bf16", Entry("kdlab", "kd", teacher_precision="bf16"), KD, 1.8, 2.1),
    Contest("KD slim bf16", Entry("kdlab", "kd", **BF16), KD, 2.3, 3.0, 0.67),
    Contest("KD slim bf16, top-k cache", Entry("kdlab", "kd", cache="top_k", **BF16), KD, 5.0, 6.0),
    Contest("KD slim bf16, hidden cache", Entry("kdlab", "kd", cache="hidden", **BF16), KD, 4.3, 5.0),
    Contest("KD wide fp32", Entry("kdlab", "kd", shape="wide_1x1", steps=2), WIDE, 1.15, 1.3),
    Contest("KD wide bf16", Entry("kdlab", "kd", shape="wide_1x1", **BF16), WIDE, 2.3, 2.8),
)


def run(entry: Entry) -> dict[str, Any]:
    """What one process reports; {"error": last line} where it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(PROCESS), json.dumps(asdict(entry))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(contests: list[Contest], rounds: int) -> list[dict[Entry, dict[str, Any]]]:
    """For every round, what each process reported; one that failed is not started again."""
    entries = list(dict.fromkeys(entry for contest in contests for entry in (contest.plain, contest.ours)))
    found: list[dict[Entry, dict[str, Any]]] = []
    for number in range(rounds):
        found.append({})
        for entry in entries:
            failed = found[0].get(entry, {}).get("error")
            found[-1][entry] = {"error": failed} if failed else run(entry)
            print(json.dumps({"round": number + 1, **asdict(entry), **found[-1][entry]}), file=sys.stderr, flush=True)
    return found


def row(contest: Contest, found: list[dict[Entry, dict[str, Any]]]) -> tuple[str, bool]:
    """The contest's line of the table, and whether it holds."""
    reports = [(one[contest.ours], one[contest.plain]) for one in found]
    failed = [report["error"] for pair in reports for report in pair if "error" in report]
    if failed:
        return f"{contest.name:28} failed: {failed[0]}", False
    seconds = [(min(ours["cpu_s"]), min(plain["cpu_s"])) for ours, plain in reports]
    ratios = [plain / ours for ours, plain in seconds]
    holds = median(ratios) >= contest.at_least
    memory = ""
    if contest.rss_at_most is not None:
        shares = [ours["rss_mib"] / plain["rss_mib"] for ours, plain in reports]
        holds = holds and median(shares) <= contest.rss_at_most
        rss = [round(median(side["rss_mib"] for side in sides)) for sides in zip(*reports, strict=True)]
        memory = f"   RSS {rss[0]} of {rss[1]} MiB = {median(shares):.2f} (at most {contest.rss_at_most})"
    ours_s, plain_s = (median(side) for side in zip(*seconds, strict=True))
    line = (
        f"{contest.name:28} {ours_s:6.2f} s  plain {plain_s:6.2f} s  {median(ratios):5.2f} x "
        f"({min(ratios):.2f}-{max(ratios):.2f})  at least {contest.at_least:.2f}, aim {contest.aim:.2f}{memory}"
    )
    return line, holds


def main() -> None:
    """Runs the contests whose names begin with --only."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="contests whose name begins so")
    chosen = parser.parse_args()
    contests = [contest for contest in CONTESTS if contest.name.startswith(chosen.only)]
    if not contests:
        parser.error(f"no contest begins with {chosen.only!r}; they are {', '.join(c.name for c in CONTESTS)}")
    found = measure(contests, chosen.rounds)
    lines = [row(contest, found) for contest in contests]
    for line, holds in lines:
        print(f"{'holds' if holds else 'BELOW'}  {line}")
    sys.exit(not all(holds for _, holds in lines))


if __name__ == "__main__":
    main()
