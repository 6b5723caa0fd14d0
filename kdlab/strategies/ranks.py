"""What the processes of one training tell each other; alone, every function gives back what it gets.

Counts and sums travel as CPU numbers, so that no GPU has to be waited for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")

# CPU tensors travel by gloo, those of GPUs by NCCL.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


def rank() -> int:
    """Which of the processes this one is; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def num_nodes() -> int:
    """On how many nodes they are, equally many on each, as torchrun says it."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1))


def summed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sum over ranks of each of some numbers (exact for integers), the same on every rank."""
    if num_ranks() == 1:
        return dict(values)
    total = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    dist.all_reduce(total)
    sums = zip(values.items(), total.unbind(), strict=True)
    return {name: part if isinstance(value, Tensor) else part.item() for (name, value), part in sums}


def from_first(value: Value) -> Value:
    """A plain value as the first rank has it."""
    if num_ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: Value) -> list[Value]:
    """A plain value or a CPU tensor of every rank, in order."""
    if num_ranks() == 1:
        return [value]
    found: list[Any] = [None] * num_ranks()
    dist.all_gather_object(found, value)
    return found


def full(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks, gathered by all of them together; another as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
