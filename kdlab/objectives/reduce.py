"""The one place for masks, projection to the vocabulary, fp32, chunks and sums.

All token terms see the same logits of a chunk, in fp32, without the padding id (the last of the vocabulary). Their
gradient with respect to hidden states and head is taken *in the forward pass*, so that no (positions x vocabulary)
tensor outlives a chunk. `plain=True` is one chunk through ordinary autograd: the test of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdlab.objectives.objective import WeightedTerm
from kdlab.types import Head, Targets


@dataclass(frozen=True)
class Side:
    """What one model hands to the objective: the inputs of its head, and the head."""

    hidden_RTD: Float[Tensor, "R T D"]
    head: Head


@dataclass(frozen=True)
class Positions:
    """The real positions of a microbatch, gold ones first, so that a chunk never mixes origins."""

    index_N: Int[Tensor, "N"]  # into the flattened (R, T)
    tgt_N: Int[Tensor, "N"]
    num_gold: int

    @staticmethod
    def of(targets: Targets) -> Positions:
        """Picks the real positions out of a padded target block."""
        index_N = targets.mask_RT.flatten().nonzero().squeeze(-1)
        pseudo_N: Bool[Tensor, "N"] = targets.is_pseudo_R[index_N // targets.mask_RT.shape[1]]
        index_N = torch.cat([index_N[~pseudo_N], index_N[pseudo_N]])
        tgt_N = targets.tgt_out_RT.flatten()[index_N]
        return Positions(index_N, tgt_N, num_gold=int((~pseudo_N).sum()))

    def chunks(self, chunk_size: int) -> list[tuple[slice, bool]]:
        """Slices of at most `chunk_size` positions with their origin (True for pseudo)."""
        ends = [(0, self.num_gold, False), (self.num_gold, len(self.tgt_N), True)]
        return [
            (slice(begin, min(begin + chunk_size, end)), is_pseudo)
            for start, end, is_pseudo in ends
            for begin in range(start, end, chunk_size)
        ]


@dataclass(frozen=True)
class Reduced:
    """One scalar to back-propagate, and the detached sum of each term (nats, unweighted) for the log."""

    loss: Float[Tensor, ""]
    sums: dict[str, Float[Tensor, ""]]


def reduce(
    terms: Mapping[str, WeightedTerm],
    scales: Mapping[str, float],
    targets: Targets,
    student: Side,
    teacher: Side | None,
    *,
    chunk_size: int,
    plain: bool = False,
) -> Reduced:
    """Sums every term over its real positions and scales it by a factor known beforehand.

    Args:
        scales: factor of each term's sum (weight over units of the whole optimizer step).
        chunk_size: positions projected to the vocabulary at once.
        plain: ordinary autograd over everything at once.
    """
    positions = Positions.of(targets)
    hidden_ND = student.hidden_RTD.flatten(0, 1)[positions.index_N]
    chunk_size = max(1, len(positions.tgt_N)) if plain else chunk_size
    work = _Work(terms, scales, positions, _teacher_at(teacher, positions), chunk_size, _product_type(hidden_ND))
    if plain or not torch.is_grad_enabled():
        loss, sums = work.zeros(hidden_ND)
        for chunk, is_pseudo in positions.chunks(chunk_size):
            logits_NV = project(hidden_ND[chunk], student.head, work.dtype)
            loss_c, sums_c = work.evaluate(logits_NV, chunk, is_pseudo)
            loss, sums = loss + loss_c, sums + sums_c
    else:
        head = student.head
        loss, sums = _GradientInForward.apply(hidden_ND, head.weight_VD, head.bias_V, head.pad_id, work)
    return Reduced(loss, dict(zip(terms, sums.detach().unbind(), strict=True)))


def project(hidden_ND: Float[Tensor, "N D"], head: Head, dtype: torch.dtype) -> Float[Tensor, "N W"]:
    """Logits of the V - 1 real tokens, at least fp32; the product itself in `dtype`."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_NV = hidden_ND.to(dtype) @ head.weight_VD[: head.pad_id].to(dtype).t()
        logits_NV = logits_NV.to(torch.promote_types(dtype, torch.float32))
        return logits_NV if head.bias_V is None else logits_NV + head.bias_V[: head.pad_id]


def _product_type(hidden_ND: Tensor) -> torch.dtype:
    """Autocast's type where that is on: student and teacher are projected alike, or equal models would differ."""
    device = hidden_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype


@dataclass(frozen=True)
class _Work:
    """All that a chunk needs besides the student's hidden states and head."""

    terms: Mapping[str, WeightedTerm]
    scales: Mapping[str, float]
    positions: Positions
    teacher: tuple[Tensor, Head] | None
    chunk_size: int
    dtype: torch.dtype  # of both projections

    def zeros(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """A loss and sums to add to."""
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        return hidden_ND.new_zeros((), dtype=dtype), hidden_ND.new_zeros(len(self.terms), dtype=dtype)

    def evaluate(self, logits_NV: Tensor, chunk: slice, is_pseudo: bool) -> tuple[Tensor, Tensor]:
        """Scaled loss of a chunk and the sum of each term."""
        tgt_N = self.positions.tgt_N[chunk]
        teacher_NV = None
        if self.teacher is not None:
            hidden_ND, head = self.teacher
            with torch.no_grad():
                teacher_NV = project(hidden_ND[chunk], head, self.dtype)
        loss = logits_NV.new_zeros(())
        sums = []
        for name, weighted in self.terms.items():
            if weighted.on != "all" and (weighted.on == "pseudo") != is_pseudo:
                sums.append(logits_NV.new_zeros(()))
                continue
            total = weighted.term(logits_NV, teacher_NV, tgt_N).sum()
            loss = loss + self.scales[name] * total
            sums.append(total.detach())
        return loss, torch.stack(sums)


def _teacher_at(teacher: Side | None, positions: Positions) -> tuple[Tensor, Head] | None:
    if teacher is None:
        return None
    return teacher.hidden_RTD.flatten(0, 1)[positions.index_N], teacher.head


class _GradientInForward(torch.autograd.Function):
    """Loss and sums; gradients of hidden states, head weight and bias are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, pad_id: int, work: _Work
    ) -> tuple[Tensor, Tensor]:
        dtype = work.dtype
        weight_WD = weight_VD[:pad_id].to(dtype)
        d_hidden, d_weight = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        d_bias = None if bias_V is None else torch.zeros_like(bias_V)
        loss, sums = work.zeros(hidden_ND)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for chunk, is_pseudo in work.positions.chunks(work.chunk_size):
                hidden = hidden_ND[chunk].to(dtype)
                logits_NV = (hidden @ weight_WD.t()).to(loss.dtype)
                if bias_V is not None:
                    logits_NV += bias_V[:pad_id]
                with torch.enable_grad():
                    logits_NV.requires_grad_()
                    loss_c, sums_c = work.evaluate(logits_NV, chunk, is_pseudo)
                loss += loss_c.detach()
                sums += sums_c
                if not loss_c.requires_grad:  # no term looks at this origin
                    d_hidden[chunk] = 0.0
                    continue
                (d_logits_NV,) = torch.autograd.grad(loss_c, logits_NV)
                if d_bias is not None:
                    d_bias[:pad_id] += d_logits_NV.sum(0)
                d_logits_NV = d_logits_NV.to(dtype)
                d_hidden[chunk] = (d_logits_NV @ weight_WD).to(hidden_ND.dtype)
                if dtype == d_weight.dtype:
                    d_weight[:pad_id].addmm_(d_logits_NV.t(), hidden)
                else:
                    d_weight[:pad_id] += d_logits_NV.t() @ hidden
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        grad = grads[0]
        return d_hidden * grad, d_weight * grad, None if d_bias is None else d_bias * grad, None, None
