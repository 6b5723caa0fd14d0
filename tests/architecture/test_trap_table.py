"""The table of traps is complete, and a check that notices nothing fails."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests import traps

TESTS = Path(__file__).resolve().parents[1]


def test_every_trap_has_a_check_that_is_run_against_a_planted_defect():
    planted = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and call.args]
                if any(getattr(call.func, "id", "") == "trap" for call in calls):
                    planted |= set(traps.numbers(node.name))
    assert planted == set(traps.TITLES)


def test_a_check_that_notices_no_defect_fails(monkeypatch):
    seen = []

    def planted(patch):
        seen.append("planted")

    @traps.trap(planted)
    def test_t6_notices_nothing(path):
        seen.append(path)

    test_t6_notices_nothing("plain", None, monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        test_t6_notices_nothing("chunked", planted, monkeypatch)
    assert seen == ["plain", "planted", "chunked"]


def test_names_and_cells():
    assert traps.numbers("test_t19_t22_the_card") == [19, 22] and traps.numbers("test_top_t3") == []
    assert traps._cell(Counter({"holds": 3, "catches": 2})) == "holds, catches 2"
    assert traps._cell(Counter({"not holds": 1, "not catches": 2})) == "FAILS 1, MISSES 2"
