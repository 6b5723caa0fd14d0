"""What training asks of a strategy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import nn
from torch.optim import Optimizer

from kdlab.models.transformer import Transformer
from kdlab.types import Placement


class Strategy(Protocol):
    """How one training is spread over processes; every rank has one of its own, made from the same settings."""

    @property
    def teacher(self) -> Placement: ...

    def trainer_arguments(self, device: str) -> dict[str, Any]:
        """What Lightning's Trainer is given: accelerator, devices, strategy, plugins."""
        ...

    def distribute(self, student: Transformer, maps: nn.Module, device: torch.device) -> None:
        """Leaves each rank its part of what trains, where that is not all."""
        ...

    def backward(self, module: LightningModule, *, last: bool) -> AbstractContextManager[None]:
        """Around the backward pass of a microbatch: gradients of all are summed over ranks in the last one."""
        ...

    def optimizer(self, make: type[Optimizer], parameters: list[nn.Parameter], **settings: Any) -> Optimizer:
        """The optimizer of these parameters, its state where it belongs."""
        ...

    def whole(self, student: Transformer) -> Transformer:
        """The student with all its weights on every rank: itself where it is so; else a copy, made by all together."""
        ...
