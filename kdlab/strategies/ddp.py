"""Whole weights on every rank: plain data parallelism, and ZeRO-1, which shards the optimizer's state."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from kdlab.models.transformer import Transformer
from kdlab.strategies import ranks
from kdlab.strategies.ranks import BACKENDS
from kdlab.types import Placement


@dataclass(frozen=True)
class DataParallel:
    """Every rank computes its share of a step with all the weights; gradients are summed by one all-reduce.

    Args:
        devices: processes, one a device; over all nodes of a SLURM job, equally many on each.
        teacher: replicated, sharded or offloaded.
        shard_optimizer: each rank keeps the optimizer's state of some parameters, updates these and sends them to the
            others (ZeRO-1).

    Source: Rajbhandari et al. 2020 (ZeRO) for the second.
    """

    devices: int
    teacher: Placement = "replicated"
    shard_optimizer: bool = False

    def trainer_arguments(self, device: str) -> dict[str, Any]:
        """See Strategy."""
        # Gradients are views into what is sent: else they would take their memory twice.
        settings: dict[str, Any] = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
        strategy = _SummingDDP(process_group_backend=BACKENDS[device], **settings)
        return {
            "accelerator": {"cpu": "cpu", "cuda": "gpu"}[device],
            "devices": self.devices // ranks.num_nodes(),
            "num_nodes": ranks.num_nodes(),
            "strategy": strategy,
            "plugins": [TorchElasticEnvironment()],
        }

    def distribute(self, student: Transformer, maps: nn.Module, device: torch.device) -> None:
        """Lightning wraps the module."""

    def backward(self, module: LightningModule, *, last: bool) -> AbstractContextManager[None]:
        """Gradients add up on each rank until the last microbatch."""
        strategy: Any = module.trainer.strategy
        context: AbstractContextManager[None] = nullcontext() if last else strategy.block_backward_sync()
        return context

    def optimizer(self, make: type[Optimizer], parameters: list[nn.Parameter], **settings: Any) -> Optimizer:
        """See Strategy."""
        if self.shard_optimizer:
            with warnings.catch_warnings():  # of torch's own functions, on import
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.distributed.optim import ZeroRedundancyOptimizer
            return ZeroRedundancyOptimizer(parameters, optimizer_class=make, **settings)
        return make(parameters, **settings)

    def whole(self, student: Transformer) -> Transformer:
        """It is."""
        return student


class _SummingDDP(DDPStrategy):
    """DDP whose gradients are the sum over ranks, not their mean: a loss is divided by the units of all ranks."""

    def configure_ddp(self) -> None:
        super().configure_ddp()
        self.model.register_comm_hook(None, _sum)  # type: ignore[union-attr,operator]


def _sum(_, bucket):  # type: ignore[no-untyped-def]  # torch compares annotations as objects, and ours are text
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])
