"""Real positions without padding: linear layers and norms work on (N, D), only attention on the padded grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the N real positions of a padded block (B, T) lie, row by row.

    Padding of an unpacked block repeats the real position before it, so that everything stays finite. Nobody may look
    at it: attention masks it as a key, and `pack` drops it as a query, which is why its gradient is zero.
    """

    shape: tuple[int, int]
    index_N: Int[Tensor, "N"] | None  # into the flattened block; None: no padding, N = B * T
    source_M: Int[Tensor, "M"] | None  # for each of the M = B * T positions, which packed one it shows

    @staticmethod
    def of(mask_BT: Bool[Tensor, "B T"]) -> Packing:
        """The packing of a mask (True = real)."""
        shape = (mask_BT.shape[0], mask_BT.shape[1])
        if mask_BT.is_meta or (mask_BT.device.type == "cpu" and bool(mask_BT.all())):  # a GPU would wait for the answer
            return Packing(shape, None, None)
        mask_M = mask_BT.flatten()
        return Packing(shape, mask_M.nonzero().squeeze(-1), (mask_M.cumsum(0) - 1).clamp_(min=0))

    def pack(self, x_BT: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        x_M = x_BT.flatten(0, 1)
        return x_M if self.index_N is None else _Pack.apply(x_M, self.index_N)

    def unpack(self, x_N: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...)."""
        x_M = x_N if self.index_N is None else _Unpack.apply(x_N, self.index_N, self.source_M)
        return x_M.unflatten(0, self.shape)

    def columns(self) -> Int[Tensor, "N"]:
        """The position within its row of each packed position, from 0; for a block with padding."""
        assert self.index_N is not None
        return self.index_N % self.shape[1]


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_M: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.shape = x_M.shape
        return x_M.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index_N,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, index_N, grads[0]), None


class _Unpack(torch.autograd.Function):
    """Two gathers, where autograd's own would add up the gradient of every repeated position."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, index_N: Tensor, source_M: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        if not len(x_N):  # a block of padding alone
            return x_N.new_zeros(len(source_M), *x_N.shape[1:])
        return x_N.index_select(0, source_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (index_N,) = ctx.saved_tensors
        return grads[0].index_select(0, index_N), None, None
