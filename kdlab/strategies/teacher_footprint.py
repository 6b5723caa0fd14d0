"""Bytes of a frozen teacher beside a student, whole, in parts or in the CPU's memory; plain arithmetic, no torch.

Linear layers are in the teacher's precision, everything else in fp32; the head is there once more in bf16 where the
products are. A sharded teacher gathers a layer after the other, an offloaded one fetches it; both have what is outside
the layers on the device from the forward until the loss is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

from kdlab.models.activations import Microbatch, layer_outputs
from kdlab.models.shapes import Shapes, groups, is_linear, parameter_shapes
from kdlab.strategies.trainings import Training

FP32, BF16 = 4, 2


def memory(training: Training, placement: str, num_devices: int, size: Microbatch) -> int:
    """The teacher on one device, and what it gives for a microbatch."""
    teacher, precision = training.teacher, training.teacher_precision
    if teacher is None or training.cache == "top_k":
        return 0
    head = teacher["tgt_vocab_size"] * teacher["d_model"]
    if training.cache == "hidden":
        read = 2 if training.hidden and teacher.get("norm") == "pre" else 1  # what the head sees, and the last layer
        return head * (FP32 if precision == "fp32" else BF16) + read * size.tgt * teacher["d_model"] * FP32
    copy = 0 if precision == "fp32" else BF16 * head
    table = FP32 * teacher.get("max_positions", 1024) * teacher["d_model"]
    return weights(teacher, precision, placement, num_devices) + copy + table + layer_outputs(teacher, size)


def weights(teacher: Mapping[str, Any], precision: str, placement: str = "replicated", num_devices: int = 1) -> int:
    """Bytes of its parameters on one device, at their most."""
    layers, rest = groups(parameter_shapes(teacher))
    sizes = sorted((_bytes(layer, precision) for layer in layers), reverse=True)
    outside = _bytes(rest, precision)
    if placement == "offloaded":
        return outside + sum(sizes[:1])
    if placement == "sharded":
        return at_rest(teacher, precision, num_devices) + outside + sum(sizes[:2])  # the next one arrives meanwhile
    return outside + sum(sizes)


def at_rest(teacher: Mapping[str, Any], precision: str, num_devices: int) -> int:
    """Bytes of a sharded teacher on one device between two forwards."""
    return _bytes(parameter_shapes(teacher), precision, num_devices)


def gathered(training: Training, placement: str, num_devices: int) -> int:
    """Bytes of the buffers that a forward of a sharded teacher gathers; nothing of another."""
    if training.teacher is None or training.cache != "none" or placement != "sharded":
        return 0
    return num_devices * at_rest(training.teacher, training.teacher_precision, num_devices)


def _bytes(shapes: Shapes, precision: str, num_parts: int = 1) -> int:
    total = 0
    for name, shape in shapes.items():
        numbers = ceil(shape[0] / num_parts) * prod(shape[1:])
        if precision == "fp32" or not is_linear(name):
            total += FP32 * numbers
        elif precision == "bf16":
            total += BF16 * numbers
        else:  # int8 weights; a scale and a bias in fp32 for each output
            total += numbers if len(shape) == 2 else 2 * FP32 * numbers
    return total
