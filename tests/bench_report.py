"""CPU-seconds of `python -m kdlab.report` on 100 finished runs: significance computed, then taken from its cache.

    python tests/bench_report.py

A hundred students with their students alone, 1,000 sentences each: 200 p-values by resampling. Every report is a
process of its own. Fails above 60 CPU-seconds without the cache, above 5 with it.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kdlab.evaluation.sacrebleu import score
from tests.report_runs import Runs

LIMITS = {"computed": 60.0, "cached": 5.0}
SENTENCES = 1000


def statistics(draw, references, errors):
    """Per-sentence counts of a system that gets some words wrong."""
    lines = [" ".join("x" if draw.random() < errors else word for word in line.split()) for line in references]
    return {metric: found["statistics"] for metric, found in score(lines, [references]).items()}


def mixed(draw, some):
    """Another system: every sentence from one of some."""
    chosen = [draw.randrange(len(some)) for _ in range(SENTENCES)]
    return {metric: [some[c][metric][n] for n, c in enumerate(chosen)] for metric in some[0]}


def cpu_seconds(*command):
    """Of a process and its children, user plus system."""
    before = os.times()
    subprocess.run(command, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main():
    """Prints both figures; 1 where one is beyond its limit."""
    draw = random.Random(1)
    references = [" ".join(f"w{draw.randint(1, 900)}" for _ in range(draw.randint(5, 25))) for _ in range(SENTENCES)]
    pool = [statistics(draw, references, errors) for errors in (0.3, 0.32, 0.34)]
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        for student in ("slim_1x1", "wide_1x1", "slim_3x3", "wide_3x3"):
            for seed in range(5):
                alone = mixed(draw, pool)
                for temperature in (0.5, 1, 2, 5, 10):
                    found = {"student": {"wmt20": mixed(draw, pool[:2])}, "baseline": {"wmt20": alone}}
                    curve = [draw.random() for _ in range(50)]
                    runs.add(
                        "grid",
                        student=student,
                        seed=seed,
                        temperature=temperature,
                        scores={"wmt20": 30 + draw.random()},
                        alone={"wmt20": 29.0},
                        statistics=found,
                        curve=curve,
                    )
        place = Path(folder) / "runs" / "grid"
        failed = False
        for what, limit in LIMITS.items():
            (place / "results.csv").unlink(missing_ok=True)
            used = cpu_seconds(sys.executable, "-m", "kdlab.report", str(place))
            failed |= used > limit
            print(f"report of 100 runs, significance {what}: {used:.1f} CPU-s (at most {limit:.0f})", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
