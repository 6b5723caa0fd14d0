"""claims.yaml: what somebody has claimed, and the comparisons of runs that would show it; nothing is measured here.

tests: [test2016, test2017]            # test sets of every comparison that names none of its own
arms: # name -> whose results.csv, and the settings that tell its rows; a list means any of its values
  alone: {experiment: [hinton_small], where: {model: baseline}}
  word_kd: {experiment: [hinton_small], where: {model: student, temperature: 1}}
claims:
  - id: C24
    claim: a short title
    says: the statement in full
    deck: what the source's own numbers say of it
    rule: all                          # or majority, of the comparisons (verdict.py)
    note: what the comparisons do not show           # optional
    would_test: what would show it                   # where no comparison is planned
    comparisons:
      - name: word-level KD against the student alone
        for_each: {student: [slim_1x1, wide_1x1]}    # optional: one comparison for each, the setting added to all arms
        arm: word_kd                   # a name, {arm: name, <setting>: value}, or a list: their mean; with `over:
                                       # another` less that one, which the settings tell apart too
        against: alone                 # the same; several under `against_best`: the best of them
        expect: greater                # than `against`: greater, less, similar, at_most
        margin: 0.5                    # BLEU; see verdict.py
      - name: gain on log2 of parameters
        slope: [{arm: word_kd, over: alone, student: slim_1x1}, {arm: word_kd, over: alone, student: wide_1x1}]
        expect: greater
      - name: a figure measured elsewhere
        figure: 0.073
        expect: greater
        margin: 0.5                    # what the figure is compared with
        source: label_modes_small/README.md
        stands_as: the mode has 7 %    # text that must be found there
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from kdlab.errors import UserError, did_you_mean
from kdlab.report.layout import Settings
from kdlab.report.summary import label
from kdlab.report.verdict import EXPECTATIONS, FIGURE_EXPECTATIONS, RULES

FILE = "claims.yaml"
CLAIM = ("id", "claim", "says", "deck", "rule", "note", "would_test", "comparisons")
COMPARISON = ("name", "for_each", "arm", "against", "against_best", "slope", "tests", "expect", "margin")
FIGURE = ("name", "figure", "expect", "margin", "source", "stands_as")


@dataclass(frozen=True)
class Arm:
    """Rows of some experiments' results.csv: those that fulfil all of `where`."""

    experiments: tuple[str, ...]
    where: Settings


Terms = tuple[tuple[float, Arm], ...]  # a weighted sum of the scores of arms


@dataclass(frozen=True)
class Comparison:
    """A difference of scores with what is claimed of it.

    `arm` less `against` (the best of several), or the slope of `slope` on log2 of the parameters of their first arms.
    """

    name: str
    tests: tuple[str, ...]
    expect: str
    margin: float
    arm: Terms = ()
    against: tuple[Terms, ...] = ()
    slope: tuple[Terms, ...] = ()

    def experiments(self) -> list[str]:
        """Whose results are asked."""
        sides = (self.arm, *self.against, *self.slope)
        return list(dict.fromkeys(name for side in sides for _, arm in side for name in arm.experiments))


@dataclass(frozen=True)
class Figure:
    """A number that an experiment's page states, compared with a threshold."""

    name: str
    value: float
    expect: str
    margin: float
    source: str


@dataclass(frozen=True)
class Claim:
    """One claim, by its number in the source."""

    id: str
    claim: str
    says: str
    deck: str
    rule: str = "all"
    note: str = ""
    would_test: str = ""
    comparisons: list[Comparison | Figure] = field(default_factory=list)


def read(folder: Path) -> list[Claim]:
    """The claims of a folder's claims.yaml. Raises: UserError."""
    path = folder / FILE
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
        _check(path, "the file", found, ("tests", "arms", "claims"))
        arms = {name: _arm(path, name, node) for name, node in found["arms"].items()}
        return [_Reader(folder, found.get("tests", []), arms, node).claim() for node in found["claims"]]
    except (OmegaConfBaseException, YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not understood ({type(error).__name__}: {error}), so no claim can be judged; write it as the "
            "head of kdlab/report/claims.py shows"
        ) from error


def _arm(path: Path, name: str, node: dict[str, Any]) -> Arm:
    _check(path, f"arm '{name}'", node, ("experiment", "where"))
    experiments = node["experiment"]
    return Arm(tuple(experiments) if isinstance(experiments, list) else (experiments,), node.get("where", {}))


class _Reader:
    def __init__(self, folder: Path, tests: list[str], arms: dict[str, Arm], node: dict[str, Any]):
        self.folder, self.path, self.tests, self.arms, self.node = folder, folder / FILE, tests, arms, node

    def claim(self) -> Claim:
        """The claim with all comparisons written out."""
        self._check_node("claim", self.node, CLAIM)
        told = {name: " ".join(str(self.node[name]).split()) for name in CLAIM[:-1] if name in self.node}
        self._one_of("rule", told.get("rule", "all"), RULES)
        nodes = self.node.get("comparisons", [])
        return Claim(**told, comparisons=[one for node in nodes for one in self._comparisons(node)])

    def _comparisons(self, node: dict[str, Any]) -> Iterator[Comparison | Figure]:
        known = FIGURE_EXPECTATIONS if "figure" in node else EXPECTATIONS
        self._one_of("expect", node["expect"], known)
        if "figure" in node:
            self._check_node(f"'{node['name']}'", node, FIGURE)
            self._stands(node["source"], node["stands_as"])
            yield Figure(node["name"], float(node["figure"]), node["expect"], float(node["margin"]), node["source"])
            return
        self._check_node(f"'{node['name']}'", node, COMPARISON)
        grid = {name: values for name, values in node.get("for_each", {}).items()}
        for values in product(*grid.values()):
            extra = dict(zip(grid, values, strict=True))
            told = label({name: str(value) for name, value in extra.items()})
            against = node["against_best"] if "against_best" in node else [node["against"]] if "against" in node else []
            yield Comparison(
                name=f"{node['name']}: {told}" if told else node["name"],
                tests=tuple(node.get("tests", self.tests)),
                expect=node["expect"],
                margin=float(node.get("margin", 0)),
                arm=self._side(node["arm"], extra) if "slope" not in node else (),
                against=tuple(self._side(one, extra) for one in against),
                slope=tuple(self._side(one, extra) for one in node.get("slope", [])),
            )

    def _side(self, node: Any, extra: Settings) -> Terms:
        """The weighted arms of one side; `over` counts against them."""
        if isinstance(node, list):
            sides = [self._side(one, extra) for one in node]
            return tuple((weight / len(sides), arm) for side in sides for weight, arm in side)
        told = {"arm": node} if isinstance(node, str) else dict(node)
        name, over = told.pop("arm"), told.pop("over", None)
        self._one_of("arm", name, self.arms)
        arm = self.arms[name]
        found: Terms = ((1.0, Arm(arm.experiments, arm.where | extra | told)),)
        return found + (() if over is None else negative(self._side(over, extra | told)))

    def _stands(self, source: str, text: str) -> None:
        place = self.folder / source
        found = place.read_text(encoding="utf-8") if place.exists() else ""
        if " ".join(text.split()) not in " ".join(found.split()):
            raise UserError(
                f"{self.path}: '{text}' does not stand in {place}, so the figure of {self.node['id']} has no source; "
                "quote that page as it is now, or leave the figure out"
            )

    def _check_node(self, what: str, node: dict[str, Any], known: tuple[str, ...]) -> None:
        _check(self.path, f"{self.node.get('id', 'a claim without id')}, {what}", node, known)

    def _one_of(self, what: str, value: str, known: Iterable[str]) -> None:
        if value not in known:
            raise UserError(
                f"{self.path}: {self.node.get('id')} has {what} '{value}'{did_you_mean(value, list(known))}, which is "
                f"not known here; write one of {', '.join(known)}"
            )


def negative(terms: Terms) -> Terms:
    """The same arms with the opposite weights."""
    return tuple((-weight, arm) for weight, arm in terms)


def _check(path: Path, what: str, node: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in node:
        if key not in known:
            raise UserError(
                f"{path}: unknown key '{key}' in {what}{did_you_mean(key, known)}, which would be passed over; write "
                f"some of {', '.join(known)}"
            )
