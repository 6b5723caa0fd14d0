"""The rules by which runs support or contradict a claim; all of them, and the words that claims.md says them with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from kdlab.report.significance import Contrast

SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = "supported", "contradicted", "undecided", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN)
EXPECTATIONS = ("greater", "less", "similar", "at_most")
FIGURE_EXPECTATIONS = ("greater", "less", "at_most")
RULES = ("all", "majority")
SIGNIFICANT = 0.05
WIDTH = 3  # borrowed standard deviations to either side of a single seed's difference
ONE_SEED, NO_STATISTICS = "one seed", "no p: the statistics are not at hand"

TOLD = (
    "A comparison is a difference of BLEU between two arms that share seed and test set, in every seed that both have. "
    "p is that of sacreBLEU's paired bootstrap over sentences (1,000 samples; each sentence's counts are summed over "
    "the seeds, and one draw of sentences serves all), 95 % where those samples lie. Both say whether other sentences "
    "could turn the difference round, not whether other trainings could. That is what the seeds are for: the standard "
    "deviation of their differences, and the demand that they agree. sacreBLEU's p counts only one tail of a clear "
    "difference, so a difference is **significant** here when p < 0.05 and the 95 % lie on one side of zero. No "
    "correction is made for the number of comparisons.",
    "On one test set a comparison that expects more (or less) is **supported** when the mean difference lies beyond "
    "the margin in the claimed direction, is significant and has that sign in every seed; **contradicted** when all "
    "this holds in the other direction. `within` is supported when no seed's difference exceeds the margin either way, "
    "contradicted when the mean does, significantly, with the same sign in every seed. `at most` is supported when no "
    "seed's difference exceeds the margin, contradicted when every seed's does and the 95 % lie above it. All else is "
    "**undecided**.",
    "Where only one seed is there, its spread over trainings is borrowed: the pooled standard deviation over seeds of "
    "all arms of the same experiments that have several. The two ends of the difference ± 3 times what that makes of "
    "it then stand in the place of the seeds; without enough such arms the comparison is undecided. Arms at other "
    "settings may spread more. A figure that an experiment's page states is compared with its threshold alone.",
    "A comparison stands (or falls) when it does so on every one of its test sets. A claim with the rule `all` is "
    "supported when all of its comparisons are, and contradicted when any one is; with `majority`, when more than half "
    "are. Of several others the best is that with the highest mean over the seeds that all arms have. **Not run**: "
    "one of the arms has no runs.",
)


def outcome(
    expect: str, margin: float, differences: Sequence[float], resampled: Contrast | None, noise: float | None = None
) -> tuple[str, str]:
    """What one comparison on one test set says, and why no more.

    Args:
        differences: BLEU of the arm less that of what it is compared with, one a seed.
        resampled: None where there are no statistics to resample.
        noise: standard deviation over trainings of the difference, to be used with one seed; None: not known.
    """
    if not differences:
        return NOT_RUN, ""
    if len(differences) == 1 and noise is None:
        return UNDECIDED, ONE_SEED
    told = [] if resampled else [NO_STATISTICS]
    if len(differences) == 1 and noise is not None:
        told.append(f"{ONE_SEED}, borrowed standard deviation of the difference {noise:.2f}")
        differences = [differences[0] - WIDTH * noise, differences[0] + WIDTH * noise]
    mean, low, high = fmean(differences), -math.inf, math.inf
    if resampled and resampled.p_value < SIGNIFICANT:
        low, high = resampled.low, resampled.high
    up, down = low > 0 and min(differences) > 0, high < 0 and max(differences) < 0
    if expect == "similar":
        for_it, against_it = max(map(abs, differences)) <= margin, abs(mean) > margin and (up or down)
    elif expect == "at_most":
        for_it, against_it = max(differences) <= margin, min(differences) > margin and low > margin
    else:
        more, less = mean > margin and up, mean < -margin and down
        for_it, against_it = (more, less) if expect == "greater" else (less, more)
    verdict = SUPPORTED if for_it else CONTRADICTED if against_it else UNDECIDED
    return verdict, "; ".join(told)


def of_figure(expect: str, threshold: float, value: float) -> str:
    """What a stated figure says; it has neither seeds nor significance."""
    holds = {"greater": value > threshold, "less": value < threshold, "at_most": value <= threshold}
    return SUPPORTED if holds[expect] else CONTRADICTED


def over_tests(found: Sequence[str]) -> str:
    """Of one comparison: what all its test sets say alike."""
    return found[0] if found and len(set(found)) == 1 else UNDECIDED if found else NOT_RUN


def over_comparisons(rule: str, found: Sequence[str]) -> str:
    """Of a claim, by its rule."""
    if all(one == NOT_RUN for one in found):
        return NOT_RUN
    if rule == "all":
        alike = over_tests(found)
        return CONTRADICTED if CONTRADICTED in found else alike
    for verdict in (SUPPORTED, CONTRADICTED):
        if found.count(verdict) > len(found) / 2:
            return verdict
    return UNDECIDED
