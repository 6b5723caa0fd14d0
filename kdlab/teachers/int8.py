"""Linear layers with int8 weights, for a frozen teacher on a CPU: about twice as fast as bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127  # -128 is left out, so that a number and its negative are treated alike


class Int8Linear(nn.Module):
    """A linear layer whose weights have one scale for each output, its inputs one for each row.

        y = scale_row * scale_out * (round(x / scale_row) @ round(W / scale_out)) + b,   scale = max |.| / 127

    A row's scale comes from the row alone, so that neighbours in a batch change nothing. Sums are exact (int32).
    Source: the vector-wise scheme of Dettmers et al. 2022 (LLM.int8()), without its outlier columns.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale_O1 = linear.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
        self.weight_IO: Tensor
        self.register_buffer("weight_IO", (linear.weight / scale_O1).round().to(torch.int8).t())
        self.scale_O: Tensor
        self.register_buffer("scale_O", scale_O1.squeeze(1).float())
        self.bias = linear.bias

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.flatten(0, -2).float()
        scale_N1 = x_NI.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / LARGEST
        product_NO = torch._int_mm((x_NI / scale_N1).round_().to(torch.int8), self.weight_IO)
        y_NO = product_NO.float().mul_(scale_N1).mul_(self.scale_O).add_(self.bias.float())
        return y_NO.to(torch.bfloat16).unflatten(0, x.shape[:-1])


def to_int8(model: nn.Module) -> None:
    """Replaces every linear layer of a model, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
