"""Which of a teacher's layers a student starts from, and whether their tensors fit; no torch, so that a plan can check.

A stack of N layers is cut into n blocks, block i being the layers floor(i N / n) to floor((i + 1) N / n) - 1: where n
does not divide N, the sizes differ by one (5 -> 2: two layers, then three).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdlab.errors import did_you_mean

# (layers of the teacher N, layers of the student n) -> a layer of the teacher for each of the student, n <= N
RULES: dict[str, Callable[[int, int], list[int]]] = {
    # The first of every block: 24 -> 3 is 0, 8, 16.
    "every_n": lambda N, n: [i * N // n for i in range(n)],
    # The last of every block: 24 -> 3 is 7, 15, 23.
    "last_of_block": lambda N, n: [(i + 1) * N // n - 1 for i in range(n)],
    # Both ends and between them i (N - 1) / (n - 1), halves upwards: 24 -> 3 is 0, 12, 23. One layer is the first.
    "spread": lambda N, n: [(2 * i * (N - 1) + n - 1) // max(2 * (n - 1), 1) for i in range(n)],
    "first_n": lambda N, n: list(range(n)),
    "last_n": lambda N, n: list(range(N - n, N)),
}
STACKS = ("encoder", "decoder")
# What shapes a tensor or says how it is used. Depth, dropout and max_positions have no tensors.
SHAPE = ("src_vocab_size", "tgt_vocab_size", "d_model", "d_ff", "num_heads", "activation", "norm", "tie")
DEFAULTS = {"activation": "relu", "norm": "post", "tie": "all", "softmax_bias": False}  # TransformerConfig's
REQUIRED = {*SHAPE, "num_encoder_layers", "num_decoder_layers"} - set(DEFAULTS)

Rule = str | list[int]


def layers(rule: Rule, num_teacher: int, num_student: int) -> list[int]:
    """The layer of the teacher (from 0) for each layer of the student; `problems` says where there is none."""
    return RULES[rule](num_teacher, num_student) if isinstance(rule, str) else list(rule)


def problems(rules: Mapping[str, Any], teacher: Mapping[str, Any], student: Mapping[str, Any]) -> list[str]:
    """Why a student cannot start from a teacher's layers, each a full sentence; nothing where it can.

    Args:
        rules: the rule or list of each stack.
        teacher, student: architectures, as TransformerConfig has them.
    """
    misfit = _misfit(teacher, student)
    found = [misfit] if misfit else []
    for stack in STACKS:
        depths = (model[f"num_{stack}_layers"] for model in (teacher, student))
        problem = _rule_problem(stack, rules[stack], *depths)
        found += [problem] if problem else []
    return found


def _misfit(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str | None:
    theirs, ours = {**DEFAULTS, **teacher}, {**DEFAULTS, **student}
    differ = [name for name in SHAPE if theirs[name] != ours[name]]
    if theirs["softmax_bias"] and not ours["softmax_bias"]:  # the other way round the student's starts at zero
        differ.append("softmax_bias")
    if not differ:
        return None
    listed = ", ".join(f"{name} is {ours[name]} and the teacher's {theirs[name]}" for name in differ)
    written = " ".join(f"student.{name}={str(theirs[name]).lower()}" for name in differ)
    return (
        f"init=layer_skip copies the teacher's tensors, but they do not fit the student: its {listed}; choose "
        f"init=random, a student preset of the teacher's width (wide_3x3 goes with teacher=wide_24x6), or write "
        f"{written}"
    )


def _rule_problem(stack: str, rule: Any, num_teacher: int, num_student: int) -> str | None:
    key = f"init.{stack}"
    if isinstance(rule, str):
        if rule not in RULES:
            known = f"one of {', '.join(RULES)} or a list of layers"
            return f"{key}={rule} is no rule for choosing layers{did_you_mean(rule, RULES)}; write {known}"
        if num_student > num_teacher:
            return (
                f"{key}={rule} chooses among the teacher's {num_teacher} {stack} layers, but the student has "
                f"{num_student}; write student.num_{stack}_layers={num_teacher} or less, the layers to repeat as a "
                f"list, e.g. {key}={_repeated(num_teacher, num_student)}, or init=random"
            )
        return None
    if not isinstance(rule, Sequence) or any(isinstance(i, bool) or not isinstance(i, int) for i in rule):
        return f"{key} must be one of {', '.join(RULES)} or a list of whole numbers, got {rule!r}"
    shown = f"{key}={_shown(rule)}"
    if len(rule) != num_student:
        return (
            f"{shown} names {len(rule)} layers, but the student has {num_student} {stack} layers and each starts from "
            f"one; write {num_student} numbers from 0 to {num_teacher - 1}"
        )
    beyond = [i for i in rule if not 0 <= i < num_teacher]
    if beyond:
        return (
            f"{shown} names layer {beyond[0]}, but the teacher's {stack} has {num_teacher}, counted from 0; write "
            f"numbers from 0 to {num_teacher - 1}"
        )
    return None


def _repeated(num_teacher: int, num_student: int) -> str:
    return _shown([i * num_teacher // num_student for i in range(num_student)])


def _shown(rule: Sequence[int]) -> str:
    return "[" + ",".join(map(str, rule)) + "]"
