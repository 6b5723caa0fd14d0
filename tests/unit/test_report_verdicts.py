"""The rules of claims.md: what seeds, p-values and margins make of a comparison, and comparisons of a claim."""

import pytest

from kdlab.report.significance import Contrast
from kdlab.report.verdict import CONTRADICTED, NOT_RUN, SUPPORTED, UNDECIDED, outcome, over_comparisons, over_tests

CLEAR, UNCLEAR = Contrast(0.001, 0.2, 1.4), Contrast(0.001, -0.1, 1.4)  # sacreBLEU's p alone does not suffice
BELOW = Contrast(0.001, -1.4, -0.2)


@pytest.mark.parametrize(
    ("expect", "margin", "differences", "resampled", "says"),
    [
        ("greater", 0, [], CLEAR, NOT_RUN),
        ("greater", 0, [0.5, 0.7], CLEAR, SUPPORTED),
        ("greater", 0, [0.5, 0.7], UNCLEAR, UNDECIDED),
        ("greater", 0, [0.5, 0.7], Contrast(0.06, 0.2, 1.4), UNDECIDED),
        ("greater", 0, [0.5, 0.7], None, UNDECIDED),
        ("greater", 0, [-0.1, 1.4], CLEAR, UNDECIDED),
        ("greater", 0.6, [0.5, 0.7], CLEAR, UNDECIDED),
        ("greater", 0.5, [0.5, 0.7], CLEAR, SUPPORTED),
        ("greater", 0, [-0.5, -0.7], BELOW, CONTRADICTED),
        ("greater", 0, [0.7], CLEAR, UNDECIDED),
        ("less", 0.5, [-0.5, -0.7], BELOW, SUPPORTED),
        ("less", 0.5, [0.5, 0.7], CLEAR, CONTRADICTED),
        ("less", 0.5, [-0.3, -0.5], BELOW, UNDECIDED),
        ("similar", 0.5, [0.5, -0.5], None, SUPPORTED),
        ("similar", 0.5, [0.5, 0.51], UNCLEAR, UNDECIDED),
        ("similar", 0.5, [0.5, 0.51], CLEAR, CONTRADICTED),
        ("similar", 0.5, [-0.5, -0.51], BELOW, CONTRADICTED),
        ("at_most", 1, [1.0, -3], None, SUPPORTED),
        ("at_most", 1, [1.1, 1.2], CLEAR, UNDECIDED),
        ("at_most", 1, [1.1, 1.2], Contrast(0.001, 1.01, 1.4), CONTRADICTED),
    ],
)
def test_what_a_comparison_says(expect, margin, differences, resampled, says):
    assert outcome(expect, margin, differences, resampled)[0] == says


def test_a_single_seed_borrows_its_spread():
    assert outcome("greater", 0, [1.0], CLEAR) == (UNDECIDED, "one seed")
    assert outcome("greater", 0, [1.0], CLEAR, 0.34)[0] == UNDECIDED  # 1.0 - 3 x 0.34 < 0
    verdict, why = outcome("greater", 0, [1.0], CLEAR, 0.33)
    assert verdict == SUPPORTED
    assert why == "one seed, borrowed standard deviation of the difference 0.33"
    assert outcome("similar", 0.5, [0.1], CLEAR, 0.13)[0] == SUPPORTED
    assert outcome("similar", 0.5, [0.1], CLEAR, 0.14)[0] == UNDECIDED
    assert outcome("greater", 0, [0.1, 0.2], CLEAR, 9.0)[0] == SUPPORTED  # several seeds need none


def test_what_a_claim_says():
    assert over_tests([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert over_tests([SUPPORTED, CONTRADICTED]) == over_tests([SUPPORTED, NOT_RUN]) == UNDECIDED
    assert over_comparisons("all", []) == over_comparisons("majority", [NOT_RUN] * 2) == NOT_RUN
    assert over_comparisons("all", [SUPPORTED] * 2) == SUPPORTED
    assert over_comparisons("all", [SUPPORTED, NOT_RUN]) == UNDECIDED
    assert over_comparisons("all", [SUPPORTED, CONTRADICTED, NOT_RUN]) == CONTRADICTED
    assert over_comparisons("majority", [SUPPORTED, SUPPORTED, CONTRADICTED]) == SUPPORTED
    assert over_comparisons("majority", [SUPPORTED, SUPPORTED, CONTRADICTED, NOT_RUN]) == UNDECIDED
