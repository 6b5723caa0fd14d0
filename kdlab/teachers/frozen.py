"""A model that only gives: eval mode, no gradient, in no module tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from kdlab.errors import UserError
from kdlab.models.int8 import Int8Linear, to_int8
from kdlab.models.transformer import Transformer
from kdlab.teachers.offloaded import Offloaded
from kdlab.types import Batch, Head, ModelOutput, Placement, Side, Split


class FrozenTeacher:
    """Holds a teacher outside every module tree.

    It is a plain object on purpose: as a submodule, a teacher would be put back into training mode by Lightning's
    `.train()` recursion, and would land in the checkpoint, the optimizer, the gradient norm and the parameter count.

    Args:
        model: taken over: set to eval mode, all gradients off.
        precision: of its own, whatever the student's: bf16 keeps its linear layers in bf16, int8 (on a CPU) in int8;
            norms stay fp32, the rest of an int8 teacher is bf16.
    """

    def __init__(self, model: Transformer, *, device: torch.device | str = "cpu", precision: str = "fp32"):
        model.eval().requires_grad_(False)
        at_least_fp32 = torch.promote_types(model.head().weight_VD.dtype, torch.float32)
        self.dtype = at_least_fp32 if precision == "fp32" else torch.bfloat16
        if precision == "int8":
            if torch.device(device).type != "cpu":
                raise UserError(
                    f"trainer.teacher_precision=int8 on {device}, but int8 teachers are for CPUs alone, where they "
                    "are faster than bf16; write bf16"
                )
            to_int8(model, torch.bfloat16)
            model.eval()  # its new layers too
        if precision == "bf16":
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        model.to(device)  # the smaller one
        self.config = model.config
        self._model = model
        self._place: Placement = "replicated"
        self._kept: Head | None = self._made()  # once and not for every chunk of positions
        self._rest: Offloaded | None = None  # embeddings, head and what else is outside the layers

    @property
    def d_model(self) -> int:
        """Width of its hidden states."""
        return self.config.d_model

    @property
    def num_layers(self) -> dict[str, int]:
        """Of its encoder and its decoder."""
        return {"encoder": self.config.num_encoder_layers, "decoder": self.config.num_decoder_layers}

    def place(self, place: Placement, device: torch.device) -> None:
        """Puts the weights elsewhere than whole on the device.

        sharded:   every rank keeps a part of each layer, gathered for the layer's forward and given back behind it. All
                   ranks must then call the teacher equally often.
        offloaded: the weights stay in the CPU's memory; a layer's are on the device while it computes.
        For both a teacher may be made on the CPU, so that the device never holds it whole.
        """
        if place == self._place:
            return
        if any(isinstance(module, Int8Linear) for module in self._model.modules()):
            raise UserError(
                f"strategy.teacher={place} with trainer.teacher_precision=int8, but int8 layers can be neither sharded "
                "nor sent to a GPU; write trainer.teacher_precision=bf16 or strategy.teacher=replicated"
            )
        self._place, self._kept = place, None
        layers = [*self._model.encoder, *self._model.decoder]
        if place == "sharded":
            mesh = init_device_mesh(device.type, (dist.get_world_size(),))
            for layer in layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            fully_shard(self._model, mesh=mesh, reshard_after_forward=False)  # until its head has been used
        else:
            of_layers = {parameter for layer in layers for parameter in layer.parameters()}
            self._rest = Offloaded([p for p in self._model.parameters() if p not in of_layers], device)
            for layer in layers:
                Offloaded(layer.parameters(), device).around(layer)
            self._model.positions = self._model.positions.to(device)

    def _made(self) -> Head:
        """The head in the type of its products."""
        head = self._model.head()
        return Head(head.weight_VD.to(self.dtype), head.bias_V, head.pad_id)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, padded: bool = False) -> ModelOutput:
        """Runs the teacher over the very same prefixes as the student, and clean sources; `padded`: at padding too."""
        batch, targets = batch.clean, batch.targets
        if self._rest is not None:
            self._rest.fetch()
        with torch.autocast(batch.src_BS.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
            return self._model(
                batch.src_BS,
                batch.src_mask_BS,
                targets.tgt_in_RT,
                targets.source_R,
                None if padded else targets.mask_RT,
            )

    @contextmanager
    def head(self) -> Iterator[Head]:
        """The projection to the vocabulary, valid inside the context."""
        if isinstance(self._model, FSDPModule):
            self._model.unshard()  # nothing to do behind a forward
            yield self._made()
            self._model.reshard()
        elif self._rest is not None:
            self._rest.fetch()
            yield self._made()
            self._rest.give_back()
        else:
            yield self._kept or self._made()

    @contextmanager
    def guide(
        self, batch: Batch, *, split: Split = "train", padded: bool = False
    ) -> Iterator[tuple[Side, ModelOutput]]:
        """What token terms and hidden terms compare with, valid inside the context; a model needs no `split`."""
        seen = self(batch, padded=padded)
        with self.head() as head:
            yield Side(seen.decoder_ND, head, self.dtype), seen
