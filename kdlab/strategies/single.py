"""One process on one device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn
from torch.optim import Optimizer

from kdlab.models.transformer import Transformer
from kdlab.types import Placement


@dataclass(frozen=True)
class Single:
    """Everything in one process.

    Args:
        teacher: replicated (on the device) or offloaded.
    """

    teacher: Placement = "replicated"

    def trainer_arguments(self, device: str) -> dict[str, Any]:
        """The environment is named because Lightning otherwise finds SLURM by itself: then it requeues the job on its
        own, and loads whatever `hpc_ckpt_*.ckpt` lies in the folder, also that of another stage."""
        accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
        return {"accelerator": accelerator, "devices": 1, "strategy": "auto", "plugins": [LightningEnvironment()]}

    def distribute(self, student: Transformer, maps: nn.Module, device: torch.device) -> None:
        """All stays here."""

    def backward(self, module: LightningModule, *, last: bool) -> AbstractContextManager[None]:
        """There is nobody to sum with."""
        return nullcontext()

    def optimizer(self, make: type[Optimizer], parameters: list[nn.Parameter], **settings: Any) -> Optimizer:
        """As it is."""
        return make(parameters, **settings)

    def whole(self, student: Transformer) -> Transformer:
        """It is."""
        return student
