"""`_target_` nodes: bound without importing, by source; what cannot be read is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdlab import targets
from kdlab.artifacts.stage import plan_keys
from kdlab.compose import compose
from kdlab.errors import UserError
from kdlab.recipes.plan import make_plan

SOURCE = """
import does_not_exist_anywhere
from dataclasses import dataclass, field
from typing import ClassVar, Literal
from .inner import Elsewhere as Renamed

Kind = Literal["a", "b"]

@dataclass(frozen=True)
class Plain:
    size: int
    kind: Kind = "a"
    items: list = field(default_factory=list)
    hidden: int = field(init=False)
    needed: str = field(metadata={})
    flag: ClassVar[bool] = True

class Constructed:
    def __init__(self, a, /, b: float, *, c: bool = False, d): ...
    @classmethod
    def other(cls, path: str): ...

class Empty: ...

def function(x: int, y: "int" = 2, **rest): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "kd_bound"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('must not be imported')", encoding="utf-8")
    (folder / "module.py").write_text(SOURCE, encoding="utf-8")
    (folder / "inner.py").write_text("class Elsewhere:\n    def __init__(self, z: int): ...\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    targets.signature.cache_clear()
    return "kd_bound.module"


def parameters(target: str) -> dict[str, bool]:
    return {p.name: p.required for p in targets.signature(target).parameters}


def test_signatures_are_read_from_source_that_cannot_even_be_imported(package: str) -> None:
    assert parameters(f"{package}.Plain") == {"size": True, "kind": False, "items": False, "needed": True}
    assert targets.signature(f"{package}.Plain").flags["flag"] is True
    assert parameters(f"{package}.Constructed") == {"a": True, "b": True, "c": False, "d": True}
    assert parameters(f"{package}.Constructed.other") == {"path": True}
    assert parameters(f"{package}.Empty") == {}
    assert parameters(f"{package}.function") == {"x": True, "y": False}
    assert targets.signature(f"{package}.function").open_ended
    assert parameters(f"{package}.Renamed") == {"z": True}
    assert not any(name.startswith("kd_bound") for name in sys.modules)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"_target_": "Plain", "size": 1, "needed": "x"}, []),
        ({"_target_": "Plain", "size": 1}, ["n lacks 'needed', which Plain needs; write n.needed: ..."]),
        (
            {"_target_": "Plain", "sizes": 1, "size": 1, "needed": "x"},
            ["unknown key 'n.sizes': Plain takes no 'sizes'; did you mean 'n.size'?"],
        ),
        ({"_target_": "Plain", "size": "1", "needed": "x"}, ["n.size must be a whole number, got '1'"]),
        ({"_target_": "Plain", "size": True, "needed": "x"}, ["n.size must be a whole number, got True"]),
        ({"_target_": "Plain", "size": 1, "needed": "x", "kind": "c"}, ["n.kind must be one of a, b, got 'c'"]),
        ({"_target_": "Constructed", "a": 0, "b": 1, "d": 0}, []),
        ({"_target_": "function", "x": 1, "anything": 2}, []),
        ({"_target_": "Plian"}, ["n: _target_ 'kd_bound.module.Plian' does not exist: kd_bound.module has no 'Plian'; "
                                 "did you mean 'Plain'?"]),
    ],
)  # fmt: skip
def test_arguments_are_bound(package: str, node: dict[str, object], expected: list[str]) -> None:
    cfg = OmegaConf.create({"n": {**node, "_target_": f"{package}.{node['_target_']}"}})
    assert targets.problems(cfg) == expected


def test_nodes_are_found_at_any_depth_and_interpolations_are_left_alone(package: str) -> None:
    target = f"{package}.Elsewhere"
    cfg = OmegaConf.create({"w": 1, "a": [{"_target_": f"{package}.Plain", "size": "${w}", "needed": "${nowhere}"}]})
    cfg.b = {"c": {"_target_": target.replace("module", "inner"), "q": 1}}
    assert [path for path, _ in targets.nodes(cfg)] == ["a.0", "b.c"]
    assert targets.problems(cfg) == [
        "unknown key 'b.c.q': Elsewhere takes no 'q'; it takes z",
        "b.c lacks 'z', which Elsewhere needs; write b.c.z: ...",
    ]


def test_what_has_no_source_is_imported() -> None:
    assert parameters("math.hypot") == {}
    assert "f" in parameters("json.decoder.JSONDecoder") or parameters("json.decoder.JSONDecoder")
    assert parameters("collections.abc.Sized") is not None
    for wrong in ("math.hypott", "nowhere_at_all.X", "json", "json.nothing"):
        with pytest.raises(UserError):
            targets.signature(wrong)


def test_build_makes_the_object_with_the_extras() -> None:
    node = OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 3})
    assert targets.build(node, denominator=4) == 0.75


def test_code_of_ones_own_is_in_the_key_of_what_it_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    term = "from kdlab.objectives.word_kd import WordKD\n\n\nclass Mine(WordKD):\n    {}\n"

    def keys(body):
        (tmp_path / "mine_in_key.py").write_text(term.format(body))
        plan = make_plan(compose(["objective.terms.kd.term._target_=mine_in_key.Mine"]).cfg)
        return plan_keys(plan), {step.name for step in plan if step.code}

    (one, own), (same, _), (other, _) = keys("pass"), keys("pass"), keys("share = 0.5")
    assert own == {"student"} and one == same
    assert {name for name in one if one[name] != other[name]} == {"student", "evaluate"}
    assert not any(step.code for step in make_plan(compose([]).cfg))
    assert targets.own_source("torch.optim.Adam") is targets.own_source("os.path.join") is None
