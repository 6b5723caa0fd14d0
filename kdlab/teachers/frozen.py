"""A model that only gives: eval mode, no gradient, in no module tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kdlab.errors import UserError
from kdlab.models.int8 import to_int8
from kdlab.models.transformer import Transformer
from kdlab.types import Batch, Head, ModelOutput, Side, Split


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
        model.eval().requires_grad_(False).to(device)
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
        self.config = model.config
        self._model = model
        head = model.head()  # in the type of its products: made once and not for every chunk of positions
        self._head = Head(head.weight_VD.to(self.dtype), head.bias_V, head.pad_id)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, padded: bool = False) -> ModelOutput:
        """Runs the teacher over the very same prefixes as the student; `padded`: at padding too."""
        targets = batch.targets
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
        """The projection to the vocabulary, valid inside the context (a sharded teacher gathers it here)."""
        yield self._head

    @contextmanager
    def guide(
        self, batch: Batch, *, split: Split = "train", padded: bool = False
    ) -> Iterator[tuple[Side, ModelOutput]]:
        """What token terms and hidden terms compare with, valid inside the context; a model needs no `split`."""
        seen = self(batch, padded=padded)
        with self.head() as head:
            yield Side(seen.decoder_ND, head, self.dtype), seen
