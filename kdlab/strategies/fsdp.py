"""Weights, gradients and optimizer state in parts, a part a rank: ZeRO-2, ZeRO-3 and FSDP, by FSDP2's `fully_shard`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.optim import Optimizer

from kdlab.models.transformer import Transformer
from kdlab.strategies import ranks
from kdlab.strategies.ranks import BACKENDS
from kdlab.types import Placement

OWN = MixedPrecisionPolicy()  # none: everything in the type that it has


@dataclass(frozen=True)
class FullySharded:
    """Every rank keeps a part of each tensor; a layer is gathered when it computes, its gradient summed and cut again.

    Embeddings and head are one group that stays gathered from the forward to the end of the backward pass.

    Args:
        devices: processes, one a device; over all nodes of a SLURM job, equally many on each.
        reshard_after_forward: layers give their gathered weights back after the forward pass and gather them once more
            for the backward pass (ZeRO-3), or keep them in between (ZeRO-2: less traffic, more memory).
        teacher: replicated, sharded or offloaded.
        replicas: groups that each hold all parts between them; gradients are summed within a group, then across.
        cpu_offload: parts and optimizer state live in the CPU's memory, and Adam runs there.
        gather: type in which the weights of layers travel and compute; bf16 halves that traffic and rounds more than
            autocast does (norms and sums inside a layer too), so it is hashed. Weights and gradients' sums stay fp32.

    Source: Rajbhandari et al. 2020 (ZeRO); Zhao et al. 2023 (FSDP).
    """

    devices: int
    reshard_after_forward: bool
    teacher: Placement = "replicated"
    replicas: int = 1
    cpu_offload: bool = False
    gather: Literal["fp32", "bf16"] = "fp32"

    def trainer_arguments(self, device: str) -> dict[str, Any]:
        """See Strategy. Checkpoints are one file of whole tensors, which every other strategy can read."""
        strategy = _ShardedByUs(
            data_parallel_size=self.devices,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=BACKENDS[device],
        )
        return {
            "accelerator": {"cpu": "cpu", "cuda": "gpu"}[device],
            "devices": self.devices // ranks.num_nodes(),
            "num_nodes": ranks.num_nodes(),
            "strategy": strategy,
            "plugins": [TorchElasticEnvironment()],
        }

    def distribute(self, student: Transformer, maps: nn.Module, device: torch.device) -> None:
        """A group for each layer and each projection, one for the rest of the student."""
        if isinstance(student, FSDPModule):
            return
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if self.cpu_offload else OffloadPolicy()
        rest: dict[str, Any] = {"mesh": self._mesh(device), "offload_policy": offload, "reshard_after_forward": False}
        policy = OWN
        if self.gather == "bf16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
        layers = {**rest, "reshard_after_forward": self.reshard_after_forward, "mp_policy": policy}
        for layer in [*student.encoder, *student.decoder]:
            fully_shard(layer, **layers)
        fully_shard(student, **rest)
        for module in maps.modules():
            if isinstance(module, nn.Linear):
                fully_shard(module, **rest)
        for part in _sharded(student, maps):  # sums, not means: a loss is divided by the units of all ranks
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)

    def backward(self, module: LightningModule, *, last: bool) -> AbstractContextManager[None]:
        """Gradients add up on each rank, whole, until the last microbatch."""
        for part in _sharded(module):
            part.set_requires_gradient_sync(last, recurse=False)
        return nullcontext()

    def optimizer(self, make: type[Optimizer], parameters: list[nn.Parameter], **settings: Any) -> Optimizer:
        """Sharded as the parameters are."""
        return make(parameters, **settings)

    def whole(self, student: Transformer) -> Transformer:
        """A plain copy."""
        with torch.device("meta"):
            plain = Transformer(student.config)
        gathered = {name: ranks.full(value.detach()) for name, value in student.named_parameters()}
        plain.load_state_dict(gathered, assign=True)
        plain.reset_positions()
        plain.recompute_layers = student.recompute_layers
        return plain

    def _mesh(self, device: torch.device) -> DeviceMesh:
        parts = ranks.num_ranks() // self.replicas
        if self.replicas == 1:
            return init_device_mesh(device.type, (parts,))
        return init_device_mesh(device.type, (self.replicas, parts), mesh_dim_names=("replicas", "parts"))


def _sharded(*roots: nn.Module) -> list[FSDPModule]:
    return [module for root in roots for module in root.modules() if isinstance(module, FSDPModule)]


class _ShardedByUs(ModelParallelStrategy):
    """Lightning's, for modules that `distribute` has put where they belong, be it the CPU."""

    def model_to_device(self) -> None:
        assert self.lightning_module is not None
        # What moving would have told the module: where its batches, sums and whole copies are.
        self.lightning_module._device = self.root_device
