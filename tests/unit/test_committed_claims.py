"""experiments/claims.yaml and claims.md, as they are committed."""

import csv
import shutil
from pathlib import Path

from kdlab.report import claims
from kdlab.report.__main__ import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_every_claim_and_hypothesis_is_judged():
    found = {claim.id: claim for claim in claims.read(EXPERIMENTS)}
    asked = {f"C{n}" for n in range(20, 29)} | {f"H{n}" for n in range(1, 12)}
    assert asked <= set(found)
    assert all(claim.comparisons or claim.would_test for claim in found.values())
    curves = [one for one in found["S1"].comparisons]
    assert len(curves) == 20
    assert curves[0].arm[0][1].where == {
        "model": "student",
        "recipe": "word_kd",
        "objective": "deck_weights",
        "temperature": 0.5,
        "objective.terms.nll.weight": 1,
        "student": "eighth_slim_1x1",
    }


def test_the_committed_page_follows_from_what_is_committed(tmp_path):
    folder = tmp_path / "experiments"
    shutil.copytree(EXPERIMENTS, folder)
    committed = [(folder / name).read_bytes() for name in ("claims.md", "comparisons.csv")]
    kept = folder / "comparisons.csv"  # what rests on sentences.csv alone is computed anew
    with open(kept, newline="") as file:
        header, *rows = csv.reader(file)
    at = [header.index(name) for name in ("p", "low", "high", "p_seeds")]
    blank = [["" if n in at and row[at[-1]] else cell for n, cell in enumerate(row)] for row in rows]
    assert blank != rows
    with open(kept, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *blank])
    assert main([str(folder), f"store={tmp_path / 'none'}"]) == 0
    assert [(folder / name).read_bytes() for name in ("claims.md", "comparisons.csv")] == committed
