"""Numbers of rows that repeat, for matrix products in bf16 on a CPU; imports nothing of kdlab.

oneDNN compiles a kernel for every shape that it meets, and packed steps have a new number of rows each: of a small
student's training a third to a half went into compiling. Rounded up with rows of zeros, a few kernels serve them all,
and every real row has the bits that it had (of one or two rows alone, the last bit may differ).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 64  # rows; more waste more, fewer leave more shapes


def round_up(x_ND: Float[Tensor, "N D"], dtype: torch.dtype) -> Float[Tensor, "M D"]:
    """`x` in this type, with zeros below where a product with it would compile."""
    if dtype != torch.bfloat16 or x_ND.device.type != "cpu":
        return x_ND.to(dtype)
    return _resized(x_ND, -(-len(x_ND) // BLOCK) * BLOCK, dtype)


class Linear(nn.Linear):
    """torch's linear layer; in bf16 on a CPU its products have a whole number of blocks of rows."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if dtype != torch.bfloat16 or x.dim() != 2 or x.device.type != "cpu" or not len(x):
            return super().forward(x)
        num_rows = -(-len(x) // BLOCK) * BLOCK
        product = F.linear(_Resized.apply(x, num_rows, dtype), self.weight, self.bias)
        return product if num_rows == len(x) else _Resized.apply(product, len(x), dtype)


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
