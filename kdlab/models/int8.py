"""Linear layers with int8 weights, for frozen models on a CPU: nearly twice as fast as bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127  # -128 is left out, so that a number and its negative are treated alike
ROWS = 16  # of a product, or a multiple: a kernel is compiled for every number of rows, and finished sentences leave


class Int8Linear(nn.Module):
    """A linear layer whose weights have one scale for each output, its inputs one for each row.

        y = scale_row * scale_out * (round(x / scale_row) @ round(W / scale_out)) + b,   scale = max |.| / 127

    A row's scale comes from the row alone, so that neighbours in a batch change nothing. Sums are exact (int32).
    Source: the vector-wise scheme of Dettmers et al. 2022 (LLM.int8()), without its outlier columns.

    Args:
        out_dtype: of what it returns; inside, everything but the product is fp32.
        packed: keep the weights as oneDNN multiplies them, for half of the time; False: as they are, for any CPU. Left
            out: packed where `can_pack`.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, out_dtype: torch.dtype, packed: bool | None = None):
        super().__init__()
        weight_OI = weight_OI.detach()
        scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
        rounded_OI = (weight_OI / scale_O1).round().to(torch.int8)
        self.scale_O: Tensor
        self.register_buffer("scale_O", scale_O1.squeeze(1).float())
        self.bias, self.out_dtype = bias_O, out_dtype
        self.packed = can_pack() if packed is None else packed
        # Not a buffer: a packed tensor can be neither moved nor copied. These layers are made last, where they work.
        self._weight = torch.ops.onednn.qlinear_prepack(rounded_OI, None) if self.packed else rounded_OI.t()
        self._zero = torch.zeros(1, dtype=torch.int32)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.flatten(0, -2).float()
        largest_N1 = torch.maximum(x_NI.amax(dim=1, keepdim=True), -x_NI.amin(dim=1, keepdim=True))  # no |x| in memory
        scale_N1 = largest_N1.clamp_(min=1e-12) / LARGEST
        num_rows = len(x_NI)
        rounded_MI = x_NI.new_empty(max(1, -(-num_rows // ROWS)) * ROWS, x_NI.shape[1], dtype=torch.int8)
        rounded_MI[:num_rows] = (x_NI / scale_N1).round_()
        rounded_MI[num_rows:] = 0
        y_NO = self._product(rounded_MI)[:num_rows].mul_(scale_N1)
        if self.bias is not None:
            y_NO.add_(self.bias.float())
        return y_NO.to(self.out_dtype).unflatten(0, x.shape[:-1])

    def _product(self, rounded_MI: Tensor) -> Tensor:
        """Sums times the scale of their output, fp32."""
        if not self.packed:
            return torch._int_mm(rounded_MI, self._weight).float().mul_(self.scale_O)
        scale, zero = 1.0, 0  # of a whole tensor: rows get theirs behind the product
        return torch.ops.onednn.qlinear_pointwise(
            *(rounded_MI, scale, zero, self._weight, self.scale_O, self._zero, None),
            *(scale, zero, torch.float32, "none", [], ""),
        )


def can_pack() -> bool:
    """Whether products with packed weights are there and exact: without VNNI, sums of pairs could overflow 16 bits."""
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.cpu._is_vnni_supported()


def to_int8(model: nn.Module, out_dtype: torch.dtype) -> None:
    """Replaces every linear layer of a model, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight, child.bias, out_dtype))
