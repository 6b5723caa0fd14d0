"""What a user did wrong, said once and clearly; imports nothing of ours.

Every message has three parts: what is wrong with its value, why it matters, what to write instead.
Commands print it without a traceback and leave with exit code 1. Anything else that escapes is our bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

CPU_IS_FULL = "can't allocate memory"  # what torch says then, in a plain RuntimeError


class UserError(Exception):
    """One problem that the user can mend: bad data, a bad file, a bad model folder."""


class ConfigError(UserError):
    """All problems of a configuration at once."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{count} in the configuration:{lines}")


@contextmanager
def memory_may_run_out(instead: str) -> Iterator[None]:
    """Makes running out of memory, of a GPU or the process, a UserError. `instead`: what to write."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        is_full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or CPU_IS_FULL in first
        if not is_full:
            raise
        raise UserError(
            f"memory ran out ({first or type(error).__name__}), and so it would again; what was finished and the last "
            f"checkpoint are kept: {instead}, and give the command again"
        ) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def import_extra(package: str, extra: str) -> Any:
    """An optional package. Raises: UserError that names the extra which brings it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"{package} cannot be imported ({error}), but this is done with it; write pip install 'kdlab[{extra}]'"
        ) from error
