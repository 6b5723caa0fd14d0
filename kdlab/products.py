"""Numbers of rows that repeat, for matrix products in bf16 on a CPU; imports nothing of kdlab.

oneDNN compiles a kernel for every shape that it meets, and packed steps have a new number of rows each: of a small
student's training a third to a half went into compiling. Rounded up with rows of zeros, a few kernels serve them all;
what a real row gets is the same but for a few last bits, which another kernel may round otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 64  # rows; more waste more, fewer leave more shapes. Up to one block, quarters: decoding has few rows


def round_up(x_ND: Float[Tensor, "N D"], dtype: torch.dtype) -> Float[Tensor, "M D"]:
    """`x` in this type, with rows of zeros below where a product in it would compile; for autograd too."""
    num_rows = len(x_ND)
    if dtype == torch.bfloat16 and x_ND.device.type == "cpu" and x_ND.dim() == 2:
        block = BLOCK if num_rows > BLOCK else max(1, BLOCK // 4)
        num_rows = -(-num_rows // block) * block
    return x_ND.to(dtype) if num_rows == len(x_ND) else _Resized.apply(x_ND, num_rows, dtype)


def cut(x_MD: Float[Tensor, "M D"], num_rows: int) -> Float[Tensor, "N D"]:
    """The first rows, for autograd too."""
    return x_MD if num_rows == len(x_MD) else _Resized.apply(x_MD, num_rows, x_MD.dtype)


def product_dtype(layer: nn.Module) -> torch.dtype:
    """In which type a layer makes its product on a CPU; that of an int8 one is none of these, and says fp32."""
    if not isinstance(layer, nn.Linear):
        return torch.float32
    casts = torch.is_autocast_enabled("cpu") and layer.weight.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if casts else layer.weight.dtype


class Linear(nn.Linear):
    """torch's linear layer; in bf16 on a CPU its products have a whole number of blocks of rows."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        dtype = product_dtype(self)
        if dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        return cut(F.linear(round_up(x, dtype), self.weight, self.bias), len(x))


class _Resized(torch.autograd.Function):
    """Rows of zeros added or rows cut off, and the type changed, in one pass over memory each way."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
        ctx.before = len(x_ND), x_ND.dtype
        return _resized(x_ND, num_rows, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _resized(grads[0], *ctx.before), None, None


def _resized(x_ND: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    if num_rows <= len(x_ND):
        return x_ND[:num_rows].to(dtype)
    resized = x_ND.new_empty(num_rows, *x_ND.shape[1:], dtype=dtype)
    resized[: len(x_ND)] = x_ND
    resized[len(x_ND) :] = 0
    return resized
