"""The objective card: what a training minimises, with every number, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.objectives.objective import HiddenTerm, Objective, WeightedTerm

UNITS = {
    "tgt_token": "target tokens",
    "src_token": "source tokens",
    "sentence": "sentences",
    "position": "target positions, padding included",
}


def card(
    objective: Objective,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
    *,
    precision: str,
    teacher_precision: str,
    teacher_objective: str | None,
) -> str:
    """The card as Markdown.

    Args:
        student, teacher: their architectures (plain values); no teacher where no term compares with one.
        teacher_objective: what the teacher was trained with, as far as its own card says.
    """
    lines = ["# Objective", "", *(f"    {line}" for line in objective.formula().split("\n")), ""]
    for name, weighted in objective.active.items():
        lines += [f"## {name}", "", *_term(objective, weighted, student, teacher), ""]
    if idle := [name for name in objective.terms if name not in objective.active]:
        lines += [f"Of weight 0, and not computed: {', '.join(idle)}.", ""]
    lines += ["## Around it", ""]
    lines += [
        f"- Softmax over {student['tgt_vocab_size'] - 1:,} tokens: the padding id is none. Logits and sums in fp32 at "
        f"least, products of the student in {precision}.",
        "- Every sum is divided by a count over all microbatches of the optimizer step, taken from masks beforehand.",
        f"- Dropout of the student: {student['dropout']:g}, in attention {student['attention_dropout']:g}; off when it "
        "is validated.",
    ]
    if teacher is not None:
        lines += [
            f"- Teacher: {teacher['num_encoder_layers']}+{teacher['num_decoder_layers']} layers of width "
            f"{teacher['d_model']}, {teacher_precision}, frozen, no dropout; it reads the student's prefixes.",
            f"- The teacher was trained with: {' '.join((teacher_objective or 'not known').split())}",
        ]
    return "\n".join([*lines, ""])


def _term(
    objective: Objective, weighted: WeightedTerm, student: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> list[str]:
    term, on = weighted.term, objective.divides(weighted)
    share = f" (mix {objective.mix:g}, as weights)" if weighted.mixed and objective.mix_by == "weights" else ""
    lines = [f"- value: {term.formula()}", f"- coefficient: {objective.weight(weighted):g}{share}"]
    if isinstance(term, HiddenTerm):
        assert teacher is not None
        pairs = term.pairs(student[f"num_{term.stack}_layers"], teacher[f"num_{term.stack}_layers"])
        lines += [
            "- compares, and takes the mean of, layer outputs (student - teacher, from 0): "
            + ", ".join(f"{term.stack}.{i} - {term.stack}.{j}" for i, j in pairs),
        ]
        if term.projection:
            lines += [
                f"- a learned matrix for each: {student['d_model']} to {teacher['d_model']}, no part of the student"
            ]
    side = "source" if isinstance(term, HiddenTerm) and term.stack == "encoder" else "target"
    padding = "padding too" if getattr(term, "counts_padding", False) else "padding masked by length"
    lines += [
        f"- looks at: every {side} position, EOS among them, of {weighted.on} rows; {padding}",
        f"- divided by: {UNITS[weighted.per]} of {on} rows"
        + (" (both sides of the mixture)" if weighted.mixed and objective.mix_by == "sampling" else ""),
    ]
    return lines
