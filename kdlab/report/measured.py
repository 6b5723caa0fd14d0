"""Comparisons of claims.yaml, measured: from the results.csv of experiments, and the store where p-values are new."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import cast

from kdlab import files
from kdlab.artifacts.store import Store
from kdlab.report import cells, comparisons, results, sentences
from kdlab.report.claims import Arm, Claim, Comparison, Figure, Terms, negative
from kdlab.report.comparisons import Line
from kdlab.report.gather import CACHE
from kdlab.report.layout import fulfils
from kdlab.report.results import DONE, Result
from kdlab.report.significance import Contrast, Load, Significance
from kdlab.report.verdict import NOT_RUN, UNDECIDED, of_figure, outcome

METRIC = "bleu"
LEAST_DEGREES = 8  # of freedom, for a standard deviation that others may borrow: within a third of the truth, mostly


class Measured:
    """Lines of claims.yaml from the results of experiments below one folder."""

    def __init__(self, folder: Path, store: Path):
        self._folder, self._store = folder, Store(store)
        self._known = comparisons.read(folder / comparisons.FILE)
        self._results: dict[str, list[Result]] = {}
        self._packed: dict[sentences.Place, str] = {}  # counts of sentences
        self._test = Significance(store / CACHE)

    def lines(self, claim: Claim, comparison: Comparison | Figure) -> list[Line]:
        """One line a test set; one for a figure."""
        if isinstance(comparison, Figure):
            told = f"{comparison.value:g} against {comparison.margin:g}, {comparison.source}"
            verdict = of_figure(comparison.expect, comparison.margin, comparison.value)
            return [Line(claim=claim.id, comparison=comparison.name, verdict=verdict, remark=told)]
        return [self._line(claim, comparison, test) for test in comparison.tests]

    def with_results(self) -> set[str]:
        """The experiments that were asked and have any."""
        return {name for name, found in self._results.items() if found}

    def _line(self, claim: Claim, comparison: Comparison, test: str) -> Line:
        start = Line(claim=claim.id, comparison=comparison.name, test=test)
        try:
            terms, remark = self._terms(comparison, test)
            found = [(weight, self._by_seed(arm, test)) for weight, arm in terms]
        except _NotMeasured as error:
            return dataclasses.replace(start, verdict=error.verdict, remark=str(error))
        everywhere = set.intersection(*(set(some) for _, some in found))
        seeds = sorted(everywhere)
        if not seeds:
            return dataclasses.replace(start, remark="no seed that all arms have")
        left = sorted(set.union(*(set(some) for _, some in found)) - everywhere)
        told = [remark, f"left out: seed {', '.join(map(str, left))}, not in every arm" if left else ""]
        rows = [(weight, [some[seed] for seed in seeds]) for weight, some in found]
        used = [one for _, some in rows for one in some]
        told += [_unequal(used)]
        keys = "; ".join(f"{weight:+.4g} {' '.join(one.key for one in some)}" for weight, some in rows)
        signatures = sorted({one.signature(METRIC) for one in used})
        start = dataclasses.replace(start, keys=keys, seeds=tuple(seeds), signature=" and ".join(signatures))
        if len(signatures) > 1 or not signatures[0] or len({one.sentences for one in used}) > 1:
            return dataclasses.replace(start, verdict=UNDECIDED, remark="not comparable: other signature or sentences")
        sums = [sum(weight * _score(some[number]) for weight, some in rows) for number in range(len(seeds))]
        differences = [round(one, 4) for one in sums]  # as they are written, so that a later report finds them
        contrast = self._contrast(start, rows, fmean(differences))
        verdict, why = outcome(
            comparison.expect, comparison.margin, differences, contrast, self._noise(comparison, terms, test)
        )
        return dataclasses.replace(
            start,
            differences=tuple(differences),
            resampled=contrast,
            verdict=verdict,
            remark="; ".join(part for part in (why, _over(contrast), *told) if part),
        )

    def _terms(self, comparison: Comparison, test: str) -> tuple[Terms, str]:
        """The weighted arms of a comparison, once it is known which is the best and how large the models are."""
        if comparison.slope:
            sizes = [math.log2(self._parameters(side[0][1], test)) for side in comparison.slope]
            spread = sum((size - fmean(sizes)) ** 2 for size in sizes)
            if not spread:
                raise _NotMeasured("all models have the same size", UNDECIDED)
            weights = [(size - fmean(sizes)) / spread for size in sizes]
            sides = zip(weights, comparison.slope, strict=True)
            return _merged(tuple((weight * one, arm) for weight, side in sides for one, arm in side)), ""
        if len(comparison.against) == 1:
            return _merged(comparison.arm + negative(comparison.against[0])), ""
        every = [set(self._by_seed(arm, test)) for side in (comparison.arm, *comparison.against) for _, arm in side]
        shared = set.intersection(*every)
        best = max(comparison.against, key=lambda side: self._mean(side, test, shared))
        return _merged(comparison.arm + negative(best)), f"the best other: {_differing(best, comparison.against)}"

    def _mean(self, side: Terms, test: str, seeds: set[int]) -> float:
        """Over some seeds; where there are none, over all that each arm has."""
        found = [(weight, self._by_seed(arm, test)) for weight, arm in side]
        return sum(weight * fmean(_score(some[seed]) for seed in seeds or some) for weight, some in found)

    def _parameters(self, arm: Arm, test: str) -> int:
        counts = {one.parameters for one in self._by_seed(arm, test).values()}
        count = next(iter(counts))
        if len(counts) > 1 or not count:
            raise _NotMeasured("the parameters of a model are not known", UNDECIDED)
        return count

    def _by_seed(self, arm: Arm, test: str) -> dict[int, Result]:
        """The finished results of an arm. Raises: _NotMeasured where there are none, or several arms fit."""
        rows = [one for name in arm.experiments for one in self._of(name)]
        done = {one.key: one for one in rows if one.test == test and one.state == DONE and fulfils(one, [arm.where])}
        found = {
            seed: one
            for seed, one in cells.by_seed(done.values()).items()
            if seed is not None and one.score(METRIC) is not None
        }
        if len({one.arm() for one in done.values()}) > 1:
            raise _NotMeasured(f"several arms fit {_told(arm)}", UNDECIDED)
        if not found:
            unknown = [name for name, value in arm.where.items() if _is_asked(value) and _unrecorded(name, rows)]
            raise _NotMeasured(
                f"{' '.join(arm.experiments)}: no results yet"
                if not rows
                else f"no results of {_told(arm)}" + (f"; no row records {', '.join(unknown)}" if unknown else "")
            )
        return found

    def _noise(self, comparison: Comparison, terms: Terms, test: str) -> float | None:
        """Standard deviation over trainings of a sum of scores, if all arms spread like those with several seeds."""
        rows = {one.key: one for name in comparison.experiments() for one in self._of(name) if one.test == test}
        arms: dict[tuple[str, ...], list[Result]] = {}
        for one in rows.values():
            arms.setdefault(one.arm(), []).append(one)
        scores = [some for arm in arms.values() if len(some := cells.scores(arm, METRIC)) > 1]
        degrees = sum(len(some) - 1 for some in scores)
        if degrees < LEAST_DEGREES:
            return None
        spread = sum((len(some) - 1) * variance(some) for some in scores) / degrees
        return math.sqrt(spread * sum(weight**2 for weight, _ in terms))

    def _of(self, experiment: str) -> list[Result]:
        if experiment not in self._results:
            self._results[experiment] = results.read(self._folder / experiment / "results.csv")
            self._packed |= sentences.read(self._folder / experiment)
        return self._results[experiment]

    def _contrast(
        self, line: Line, rows: Sequence[tuple[float, Sequence[Result]]], difference: float
    ) -> Contrast | None:
        """p-value and interval over the seeds whose sentences are known; those of comparisons.csv where it has them."""
        known = self._known.get((line.test, line.keys, line.signature, round(difference, 4)))
        loads = [(weight, [self._load(one) for one in some]) for weight, some in rows]
        at_hand = [n for n in range(len(line.seeds)) if all(some[n] for _, some in loads)]
        seeds = tuple(line.seeds[n] for n in at_hand)
        if known is not None and (not known.seeds or set(seeds) <= set(known.seeds)):
            return known
        if not at_hand:
            return None
        terms = [
            (weight, {f"{some[n].key} {line.test} {_score(some[n])}": cast(Load, these[n]) for n in at_hand})
            for (weight, some), (_, these) in zip(rows, loads, strict=True)
        ]
        found = self._test.contrast(terms, METRIC, line.signature)
        told = () if seeds == line.seeds else seeds
        return found and Contrast(round(found.p_value, 4), round(found.low, 4), round(found.high, 4), told)

    def _load(self, one: Result) -> Load | None:
        """What gives the counts of a model's sentences, from the store or sentences.csv; None where nothing does.

        Only those of this very training: a model trained again on another machine has its key and other translations.
        """
        folder = self._store.folder("evaluate_model", one.key)
        path, scores = folder / f"{one.test}.statistics.json", folder / "scores.json"
        if path.exists() and round(files.read_json(scores)[one.test][METRIC]["score"], 4) == _score(one):
            return lambda: files.read_json(path)[METRIC]
        packed = self._packed.get((one.key, one.test, one.score(METRIC)))
        return None if packed is None else lambda: sentences.unpack(packed)


class _NotMeasured(Exception):
    def __init__(self, why: str, verdict: str = NOT_RUN):
        super().__init__(why)
        self.verdict = verdict


def _merged(terms: Terms) -> Terms:
    """One term an arm, none of weight 0."""
    arms: list[Arm] = []
    for _, arm in terms:
        arms += [] if arm in arms else [arm]
    found = [(sum(weight for weight, other in terms if other == arm), arm) for arm in arms]
    if not any(weight for weight, _ in found):
        raise _NotMeasured("arms are compared with themselves", UNDECIDED)
    return tuple((weight, arm) for weight, arm in found if weight)


def _score(result: Result) -> float:
    score = result.score(METRIC)
    assert score is not None, result.key  # by_seed has looked
    return score


def _told(arm: Arm) -> str:
    return f"{' '.join(arm.experiments)} with " + ", ".join(f"{name} {value}" for name, value in arm.where.items())


def _differing(best: Terms, others: Sequence[Terms]) -> str:
    """The settings in which the first arm of a side differs from those of the others."""
    wheres = [side[0][1].where for side in others]
    mine = best[0][1].where
    told = [f"{name} {mine[name]}" for name in mine if any(where.get(name) != mine[name] for where in wheres)]
    return ", ".join(told)


def _over(contrast: Contrast | None) -> str:
    seeds = contrast.seeds if contrast else ()
    return f"p and 95 % of seed {' '.join(map(str, seeds))}, whose translations are known" if seeds else ""


def _unequal(used: Sequence[Result]) -> str:
    steps = sorted({one.max_steps for one in used}, key=lambda count: (len(count), count))
    return f"not at equal steps: {' and '.join(steps)}" if len(steps) > 1 else ""


def _is_asked(value: object) -> bool:
    return value is not None and not (isinstance(value, list) and None in value)


def _unrecorded(name: str, rows: Sequence[Result]) -> bool:
    return all(one.fact(name) is None for one in rows)
