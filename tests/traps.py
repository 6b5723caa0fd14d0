"""The table trap x path: which known mistakes of distillation losses are tested, and that each test would notice one.

A test of trap 6 is called `test_t6_...`; that alone puts it into the table, under the name of its file. `@trap` runs a
check on several paths, each also with defects planted into kdlab, under which the check must fail:

    def padding_counted(patch): patch.setattr(...)     # what somebody once got wrong

    @trap(padding_counted)
    def test_t6_padding_changes_nothing(path): ...
"""

from __future__ import annotations

import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest

PATHS = ("plain", "chunked", "cached", "bf16")  # cached: the teacher's hidden states, read from disk
TOP_K = "top-k"  # the other cache; for what looks at the teacher's distribution
COLUMNS = (*PATHS, TOP_K)
TITLES = {
    1: "T^2 left out",
    2: "value and gradient differ",
    3: "mean of means",
    4: "divided by the vocabulary or by rows",
    5: "softmax over the wrong axis",
    6: "padding counted",
    7: "divided by all positions",
    8: "KL the wrong way round",
    9: "cross-entropy called KL",
    10: "KD silently off",
    11: "label smoothing in the wrong term",
    12: "padded or another vocabulary",
    13: "teacher in training mode",
    14: "teacher's tensors of inference mode",
    15: "modules shared with the teacher",
    16: "softmax in bf16",
    17: "weights that do more than weigh",
    18: "temperature on hidden states",
    19: "hidden terms over padding or flattened",
    20: "other widths, projection lost or kept",
    21: "embedding taken for a layer",
    22: "the wrong layers",
    23: "start from the teacher incomplete",
    24: "another prefix for the teacher",
    25: "top-k without its tail",
    26: "chunks differ from the whole",
    28: "nothing to look at",
    29: "teacher in checkpoint or optimizer",
    30: "a resumed run differs",
}
Defect = Callable[[pytest.MonkeyPatch], None]


def trap(*defects: Defect, paths: tuple[str, ...] = PATHS) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of a check on each path: it holds, and it fails under every defect. The check may also take `tmp_path`."""
    cases = [
        pytest.param(path, defect, id=f"{path}-catches-{defect.__name__}" if defect else f"{path}-holds")
        for path in paths
        for defect in (None, *defects)
    ]

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def run(path: str, defect: Defect | None, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
            if defect is None:
                check(path, **more)
                return
            defect(monkeypatch)
            with pytest.raises((AssertionError, pytest.fail.Exception)):
                check(path, **more)

        def plain(path, defect, monkeypatch):
            run(path, defect, monkeypatch)

        def with_folder(path, defect, monkeypatch, tmp_path):
            run(path, defect, monkeypatch, tmp_path=tmp_path)

        test = with_folder if "tmp_path" in inspect.signature(check).parameters else plain
        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return pytest.mark.parametrize(("path", "defect"), cases)(test)

    return decorate


def numbers(name: str) -> list[int]:
    """The traps that a test's name carries: test_t19_t22_x is of 19 and 22."""
    found = re.match(r"test((?:_t\d+)+)_", name)
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notes trap, path and kind beside each test, where reports carry them from process to process."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        path = parameters["path"] if "defect" in parameters else item.path.stem.removeprefix("test_")
        kind = "catches" if parameters.get("defect") else "holds"
        for number in numbers(getattr(item, "originalname", item.name)):
            item.user_properties.append(("trap", [number, path, kind]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the table of what ran."""
    table: dict[int, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            for key, value in getattr(report, "user_properties", ()):  # a file that cannot be imported has none
                if key == "trap" and (report.when == "call" or outcome == "error"):
                    number, path, kind = value
                    table[number][path][kind if outcome == "passed" else f"not {kind}"] += 1
    if not table:
        return
    terminalreporter.section("traps: holds = the tests pass, catches = they fail under so many planted defects")
    terminalreporter.write_line(_line("", [*COLUMNS, "elsewhere"]))
    for number in sorted(table):
        elsewhere = [f"{path}: {_cell(cell)}" for path, cell in sorted(table[number].items()) if path not in COLUMNS]
        cells = [_cell(table[number][path]) if path in table[number] else "." for path in COLUMNS]
        terminalreporter.write_line(_line(f"T{number} {TITLES.get(number, '')}", [*cells, "; ".join(elsewhere)]))


def _line(title: str, cells: list[str]) -> str:
    return f"{title:<44}" + "".join(f"{cell:<19}" for cell in cells[:-1]) + cells[-1]


def _cell(seen: Counter[str]) -> str:
    bad = [f"{'FAILS' if kind == 'not holds' else 'MISSES'} {seen[kind]}" for kind in seen if kind.startswith("not")]
    good = ["holds"] * bool(seen["holds"]) + [f"catches {seen['catches']}"] * bool(seen["catches"])
    return ", ".join(bad + good)
