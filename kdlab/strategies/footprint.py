"""Bytes that a training holds on each device and communicates in each step, by strategy, as built; plain arithmetic.

No torch here: a plan can be weighed before a GPU is touched. What the lecture's accounting says is in lecture.py.

Of P parameters on N devices, in bytes a device, between two steps (4: fp32; Adam has two moments):

    single, ddp         parameters 4 P      gradients 4 P      moments 8 P
    zero1               parameters 4 P      gradients 4 P      moments 8 P / N, whole tensors (ZeroRedundancyOptimizer)
    zero2, zero3, fsdp  parameters 4 P / N  gradients 4 P / N  moments 8 P / N, rows of every tensor (FSDP2)

bf16 changes none of these: master weights, gradients and moments stay fp32, and copies for computing come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from kdlab.models.activations import Microbatch, activations
from kdlab.models.shapes import Shapes, groups, is_linear, num_parameters, shard_size
from kdlab.strategies import teacher_footprint
from kdlab.strategies.trainings import Training

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp")
FP32, BF16 = 4, 2
WIDTHS = {"fp32": FP32, "bf16": BF16}


@dataclass(frozen=True)
class Layout:
    """A strategy with its options, as they are in conf/strategy.

    Args:
        teacher: replicated, sharded (a part a device) or offloaded (to the CPU).
        replicas, cpu_offload, gather: of fsdp: groups that each hold all parts, parts kept by the CPU, type in which
            layers are gathered.
    """

    name: str
    teacher: str = "replicated"
    replicas: int = 1
    cpu_offload: bool = False
    gather: str = "fp32"

    @property
    def is_sharded(self) -> bool:
        """Whether a device has parts of tensors, and gathers them."""
        return self.name in ("zero2", "zero3", "fsdp")

    @classmethod
    def of(cls, name: str, node: Mapping[str, Any]) -> Layout:
        """From a node of conf/strategy; what it does not have is not an option of this strategy."""
        options = ("teacher", "replicas", "cpu_offload", "gather")
        return cls(name, **{option: node[option] for option in options if option in node})

    def parts(self, num_devices: int) -> int:
        """Into how many parts tensors are cut."""
        return num_devices // self.replicas if self.is_sharded else 1


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that has the most. The first three between two steps, the others while one is computed.

    copies: of weights (bf16, gathered) and of gradients on their way, and the table of positions.
    validation: what validation has beside parameters and optimizer: the first microbatch, which is as large as may be,
        the gradient of each term, and of sharded weights a whole copy.
    accumulates: there are gradients while a microbatch is computed forward.
    keeps_gradients: they never go, also in validation: DDP has them in its buckets.
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    teacher: int
    activations: int
    loss: int
    validation: int
    accumulates: bool
    keeps_gradients: bool

    @property
    def peak(self) -> int:
        """Of a training step or of validation, whichever is more."""
        forward = self.activations + self.loss
        # otherwise gradients appear while activations and what the loss needs are freed
        both = self.accumulates or self.keeps_gradients
        step = self.copies + self.teacher + (self.gradients + forward if both else max(self.gradients, forward))
        validation = self.validation + (self.gradients if self.keeps_gradients else 0)
        return self.parameters + self.optimizer + max(step, validation)


@dataclass(frozen=True)
class Traffic:
    """Bytes of an optimizer step by kind, each the size of the whole buffer, whatever the algorithm sends of it."""

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0
    broadcast: int = 0

    @property
    def ring(self) -> int:
        """What a ring sends, times N / (N - 1): an all-reduce is a reduce-scatter and an all-gather."""
        return 2 * self.all_reduce + self.reduce_scatter + self.all_gather + self.broadcast


def memory(training: Training, layout: Layout, num_devices: int) -> Memory:
    """What one device holds."""
    N = 1 if layout.name == "single" else num_devices
    shapes, size = training.shapes, training.microbatch(N)
    at_rest = FP32 * shard_size(shapes, layout.parts(N))
    moments = 2 * FP32 * largest_part(shapes, N) if layout.name == "zero1" else 2 * at_rest
    here = 0 if layout.cpu_offload else 1
    return Memory(
        parameters=here * at_rest,
        gradients=here * at_rest,
        optimizer=here * (moments + FP32 * len(shapes)),  # Adam's step of every tensor
        copies=_cast(training, layout.gather) + _gathered(training, layout, N),
        teacher=teacher_footprint.memory(training, layout.teacher, N, size),
        activations=_activations(training, size),
        loss=_loss(training, size),
        validation=_validation(training, layout, N),
        accumulates=training.num_microbatches(N) > 1,
        keeps_gradients=layout.name in ("ddp", "zero1"),
    )


def traffic(training: Training, layout: Layout, num_devices: int) -> Traffic:
    """What a step communicates; sums of counts and norms, a few numbers each, are left out."""
    if layout.name == "single" or num_devices == 1:
        return Traffic()
    shapes, parts, rounds = training.shapes, layout.parts(num_devices), training.num_microbatches(num_devices)
    whole = FP32 * num_parameters(shapes)
    teachers = rounds * teacher_footprint.gathered(training, layout.teacher, num_devices)
    if not layout.is_sharded:
        return Traffic(all_reduce=whole, broadcast=whole if layout.name == "zero1" else 0, all_gather=teachers)
    layers, root = groups(shapes)
    inside, rest = parts * sum(shard_size(layer, parts) for layer in layers), parts * shard_size(root, parts)
    if parts == 1:  # replicas alone: nothing to gather or to scatter
        inside = rest = 0
    passes = 1 if layout.name == "zero2" else 2  # the rest stays gathered from the forward to the backward
    return Traffic(
        all_reduce=0 if layout.replicas == 1 else FP32 * shard_size(shapes, parts),
        reduce_scatter=FP32 * (inside + rest),
        all_gather=rounds * (passes * WIDTHS[layout.gather] * inside + FP32 * rest) + teachers,
    )


def fits(memory: Memory, device_memory_gb: float) -> bool:
    """Whether a device has room for it; GB are 1e9 bytes."""
    return memory.peak <= device_memory_gb * 1e9


def largest_part(shapes: Shapes, num_devices: int) -> int:
    """Numbers on the fullest device where tensors stay whole: the largest first, each to the emptiest device."""
    parts = [0] * num_devices
    for size in sorted(map(prod, shapes.values()), reverse=True):
        parts[parts.index(min(parts))] += size
    return max(parts)


def _cast(training: Training, gather: str = "fp32") -> int:
    """The table of positions, and what autocast keeps of weights until the end of a step."""
    student = training.architecture
    table = FP32 * student.get("max_positions", 1024) * student["d_model"]
    if training.precision == "fp32" or gather == "bf16":
        return table
    return table + BF16 * num_parameters({name: shape for name, shape in training.shapes.items() if is_linear(name)})


def _gathered(training: Training, layout: Layout, num_devices: int) -> int:
    """Whole weights and gradients of sharded ones, while a step is computed."""
    if not layout.is_sharded:
        return 0
    layers, root = groups(training.shapes)
    sizes, rest = sorted(map(num_parameters, layers), reverse=True), num_parameters(root)
    few = sum(sizes[:2])  # one computes, the next one arrives, or the gradients of the last one leave
    weights = WIDTHS[layout.gather] * (sum(sizes) if layout.name == "zero2" else few) + FP32 * rest
    # Without communication before the last microbatch gradients stay whole until then.
    pending = sum(sizes) if training.num_microbatches(num_devices) > 1 else few
    return weights + FP32 * (pending + rest + max(rest, *sizes[:1]))


def _activations(training: Training, size: Microbatch) -> int:
    bf16 = training.precision == "bf16"
    kept = activations(training.architecture, size, bf16=bf16, on_gpu=training.on_gpu)
    return kept.total(checkpointing=training.recompute_layers)


def _validation(training: Training, layout: Layout, num_devices: int) -> int:
    size = training.validation_microbatch()
    copies = FP32 * num_parameters(training.shapes) * (training.num_gradients + layout.is_sharded)
    teacher = teacher_footprint.memory(training, layout.teacher, num_devices, size)
    return _cast(training) + copies + teacher + _activations(training, size) + _loss(training, size)


def _loss(training: Training, size: Microbatch) -> int:
    """A chunk's logits and what terms make of them; gradients of hidden states and head, made in the forward pass;
    states that hidden terms compare."""
    width, vocab_size = training.architecture["d_model"], training.architecture["tgt_vocab_size"]
    chunk = min(training.chunk_size, size.tgt) * vocab_size * FP32
    head = vocab_size * width * (FP32 + (BF16 if training.precision == "bf16" else 0))
    compared = 0
    for pair in training.hidden:
        numbers = 2 * (training.teacher or {}).get("d_model", width) + (width if pair.projected else 0)
        compared += (size.src if pair.stack == "encoder" else size.tgt) * numbers * FP32
    return training.logit_buffers * chunk + head + size.tgt * width * FP32 + compared
