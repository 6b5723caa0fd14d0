"""Which layers of student and teacher a hidden term compares; no torch, so that a configuration can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdlab.errors import UserError

RULES = ("last", "spread")
Layers = str | Sequence[Sequence[int]]


def layer_pairs(layers: Layers, num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), counted from 0; outputs of layers, never the embedding.

    Args:
        layers: "last" pairs the two last ones; "spread" pairs every student layer, the student's last with the
            teacher's last and the others evenly below it: layer i of n with (i + 1) * N // n - 1 of N; or the pairs.
    Raises: UserError for an unknown rule or a layer that a model does not have.
    """
    if found := problem(layers, num_student, num_teacher):
        raise UserError(found)
    if layers == "last":
        return [(num_student - 1, num_teacher - 1)]
    if layers == "spread":
        return [(i, max(0, (i + 1) * num_teacher // num_student - 1)) for i in range(num_student)]
    return [(int(pair[0]), int(pair[1])) for pair in layers]


def problem(layers: Any, num_student: int | None, num_teacher: int | None) -> str | None:
    """What is wrong with a choice of layers; without a model's depth, its layers are not looked up."""
    if isinstance(layers, str):
        known = "write last, spread or pairs like [[0, 3]] (student, teacher)"
        return None if layers in RULES else f"layers={layers} is no rule; {known}"
    if not isinstance(layers, Sequence) or not all(_is_pair(pair) for pair in layers):
        return f"layers={layers} are no pairs of layers; write pairs like [[0, 3]] (student, teacher)"
    for student, teacher in layers:
        for who, layer, depth in (("student", student, num_student), ("teacher", teacher, num_teacher)):
            if depth is not None and not 0 <= layer < depth:
                return (
                    f"layers has the pair [{student}, {teacher}], but the {who} has layers 0 to {depth - 1}, so there "
                    "is nothing to compare; write pairs within these"
                )
    return None


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(type(layer) is int for layer in pair)
