"""The one place for masks, projection to the vocabulary, fp32, chunks and sums of token terms.

All token terms see the same logits of a chunk, in fp32, without the padding id (the last of the vocabulary). Their
gradient with respect to hidden states and head is taken *in the forward pass*, so that no (positions x vocabulary)
tensor outlives a chunk. `plain=True` is one chunk through ordinary autograd: the test of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.objectives.distributions import Softened
from kdlab.objectives.objective import AnalyticTerm, BiasedTerm, TokenTerm, WeightedTerm
from kdlab.products import round_up
from kdlab.types import Head, Side, Targets, TopK


class Chunk(NamedTuple):
    """Positions of one origin that are looked at together."""

    at: slice
    is_pseudo: bool
    is_padding: bool

    def concerns(self, weighted: WeightedTerm) -> bool:
        """Whether a term looks at these positions."""
        if self.is_padding and not getattr(weighted.term, "counts_padding", False):
            return False
        return weighted.on == "all" or (weighted.on == "pseudo") == self.is_pseudo


@dataclass(frozen=True)
class Positions:
    """The positions of a microbatch, put in order by origin, so that a chunk never mixes origins."""

    order_N: Int[Tensor, "N"] | None  # into the model's positions; None: they are in order
    tgt_N: Int[Tensor, "N"]
    groups: list[tuple[int, bool, bool]]  # (positions, is pseudo, is padding), one after the other

    @staticmethod
    def of(targets: Targets, *, padded: bool = False) -> Positions:
        """The real positions, row by row as models give them; `padded`: all, for a term that counts padding."""
        mask_RT, pseudo_R = targets.mask_RT, targets.is_pseudo_R
        real_N = torch.ones_like(mask_RT).flatten() if padded else mask_RT.flatten()
        kind_N = (pseudo_R[:, None] + 2 * ~mask_RT).flatten()[real_N]
        tgt_N = targets.tgt_out_RT.flatten()[real_N]
        order_N = None
        if not bool((kind_N[1:] >= kind_N[:-1]).all()):
            order_N = kind_N.argsort(stable=True)
            tgt_N = tgt_N[order_N]
        counts = torch.bincount(kind_N, minlength=4).tolist()
        return Positions(order_N, tgt_N, [(n, bool(kind % 2), kind > 1) for kind, n in enumerate(counts) if n])

    def pick(self, x_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Hidden states in this order."""
        return x_ND if self.order_N is None else x_ND[self.order_N]

    def chunks(self, chunk_size: int) -> list[Chunk]:
        """Pieces of at most `chunk_size` positions."""
        found, start = [], 0
        for num, is_pseudo, is_padding in self.groups:
            for begin in range(start, start + num, chunk_size):
                found.append(Chunk(slice(begin, min(begin + chunk_size, start + num)), is_pseudo, is_padding))
            start += num
        return found


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
    teacher: Side | TopK | None,
    *,
    chunk_size: int,
    plain: bool = False,
    padded: bool = False,
) -> Reduced:
    """Sums every token term over its positions and scales it by a factor known beforehand.

    Args:
        scales: factor of each term's sum (weight over units of the whole optimizer step).
        chunk_size: positions projected to the vocabulary at once.
        plain: ordinary autograd over everything at once.
        padded: the models computed padding too, for a term that counts it.
    """
    positions = Positions.of(targets, padded=padded)
    hidden_ND = positions.pick(student.hidden_ND)
    if isinstance(teacher, TopK):
        teacher = teacher if positions.order_N is None else teacher.take(positions.order_N)
    elif teacher is not None:
        teacher = Side(positions.pick(teacher.hidden_ND), teacher.head, teacher.product_dtype())
    work = _Work(terms, scales, positions, teacher, student.product_dtype())
    head = student.head
    if plain or not torch.is_grad_enabled():
        loss, sums = work.zeros(hidden_ND)
        for chunk in positions.chunks(max(1, len(hidden_ND)) if plain else chunk_size):
            loss_c, sums_c = work.plain(project(hidden_ND[chunk.at], head, work.dtype), chunk, _real_biases(head))
            loss, sums = loss + loss_c, sums + sums_c
    else:
        loss, sums = _GradientInForward.apply(hidden_ND, head.weight_VD, head.bias_V, head.pad_id, chunk_size, work)
    return Reduced(loss, dict(zip(terms, sums.detach().unbind(), strict=True)))


def project(hidden_ND: Float[Tensor, "N D"], head: Head, dtype: torch.dtype) -> Float[Tensor, "N W"]:
    """Logits of the V - 1 real tokens, at least fp32; the product itself in `dtype`."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_NV = _logits(round_up(hidden_ND, dtype), head.weight_VD.to(dtype), head.pad_id)[: len(hidden_ND)]
        return logits_NV if head.bias_V is None else logits_NV + head.bias_V[: head.pad_id]


def _logits(hidden_ND: Tensor, weight_VD: Tensor, pad_id: int) -> Tensor:
    """Product with all V rows, the last left out behind it: rows of V - 1 numbers slow an fp32 product by half."""
    logits_NV = (hidden_ND @ weight_VD.t())[:, :pad_id]
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).contiguous()


def _real_biases(head: Head) -> Tensor | None:
    """The biases of the real tokens."""
    return None if head.bias_V is None else head.bias_V[: head.pad_id]


@dataclass(frozen=True)
class _Work:
    """All that a chunk needs besides the student's hidden states and head."""

    terms: Mapping[str, WeightedTerm]
    scales: Mapping[str, float]
    positions: Positions
    teacher: Side | TopK | None
    dtype: torch.dtype  # of the student's projection

    def zeros(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """A loss and sums to add to."""
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        return hidden_ND.new_zeros((), dtype=dtype), hidden_ND.new_zeros(len(self.terms), dtype=dtype)

    def teacher_at(self, chunk: Chunk) -> Tensor | TopK | None:
        """What the terms see of the teacher at these positions, if one of them looks."""
        looks = any(t.term.needs_teacher for t in self.terms.values() if chunk.concerns(t))
        if self.teacher is None or not looks:
            return None
        if isinstance(self.teacher, TopK):
            return self.teacher.take(chunk.at)
        with torch.no_grad():
            return project(self.teacher.hidden_ND[chunk.at], self.teacher.head, self.teacher.product_dtype())

    def nats(
        self, weighted: WeightedTerm, logits_NV: Tensor, teacher: Tensor | TopK | None, tgt_N: Tensor, bias_V: Any
    ) -> Tensor:
        """A term at every position; `bias_V` is the student's, for the one term that asks."""
        if isinstance(weighted.term, BiasedTerm):
            theirs_V = _real_biases(self.teacher.head) if isinstance(self.teacher, Side) else None
            return weighted.term.biased(logits_NV, teacher, bias_V, theirs_V)
        return cast(TokenTerm, weighted.term)(logits_NV, teacher, tgt_N)

    def plain(self, logits_NV: Tensor, chunk: Chunk, bias_V: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scaled loss of a chunk and the sum of each term, for autograd."""
        teacher, tgt_N = self.teacher_at(chunk), self.positions.tgt_N[chunk.at]
        loss, sums = logits_NV.new_zeros(()), []
        for name, weighted in self.terms.items():
            total = logits_NV.new_zeros(())
            if chunk.concerns(weighted):
                total = self.nats(weighted, logits_NV, teacher, tgt_N, bias_V).sum()
            loss = loss + self.scales[name] * total
            sums.append(total.detach())
        return loss, torch.stack(sums) if sums else logits_NV.new_zeros(0)

    def gradient(
        self, logits_NV: Tensor, chunk: Chunk, bias_V: Tensor | None, d_bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same and the gradient of the loss in the logits; closed forms where terms know theirs.

        What a term takes of the bias itself, beside the logits, is added to `d_bias_V`.
        """
        teacher, tgt_N = self.teacher_at(chunk), self.positions.tgt_N[chunk.at]
        student = Softened(logits_NV)
        guide = Softened(teacher) if isinstance(teacher, Tensor) else teacher
        d_logits_NV, loss, sums = torch.zeros_like(logits_NV), logits_NV.new_zeros(()), []
        for name, weighted in self.terms.items():
            term, scale, total = weighted.term, self.scales[name], logits_NV.new_zeros(())
            if not chunk.concerns(weighted):
                pass
            elif isinstance(term, AnalyticTerm):
                total = term.add_gradient(student, guide, tgt_N, scale, d_logits_NV).sum()
            else:
                with torch.enable_grad():
                    leaf_NV = logits_NV.detach().requires_grad_()
                    leaf_V = None if bias_V is None else bias_V.detach().requires_grad_()
                    reported = self.nats(weighted, leaf_NV, teacher, tgt_N, leaf_V).sum()
                    (scale * reported).backward()
                d_logits_NV += cast(Tensor, leaf_NV.grad)
                if leaf_V is not None and leaf_V.grad is not None:
                    cast(Tensor, d_bias_V).add_(leaf_V.grad)
                total = reported.detach()
            loss += scale * total
            sums.append(total)
        return d_logits_NV, loss, torch.stack(sums)


class _GradientInForward(torch.autograd.Function):
    """Loss and sums; gradients of hidden states, head weight and bias are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        pad_id: int,
        chunk_size: int,
        work: _Work,
    ) -> tuple[Tensor, Tensor]:
        dtype = work.dtype
        product_VD = weight_VD.to(dtype)
        d_hidden, d_weight = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        d_bias = None if bias_V is None else torch.zeros_like(bias_V)
        bias_W, d_bias_W = (None if b is None else b[:pad_id] for b in (bias_V, d_bias))  # a view: it fills d_bias
        loss, sums = work.zeros(hidden_ND)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for chunk in work.positions.chunks(chunk_size):
                if not any(chunk.concerns(weighted) for weighted in work.terms.values()):
                    d_hidden[chunk.at] = 0.0
                    continue
                rows_ND = hidden_ND[chunk.at]
                hidden = round_up(rows_ND, dtype)
                logits_NV = _logits(hidden, product_VD, pad_id)[: len(rows_ND)]
                if bias_W is not None:
                    logits_NV += bias_W
                d_logits_NV, loss_c, sums_c = work.gradient(logits_NV, chunk, bias_W, d_bias_W)
                loss += loss_c
                sums += sums_c
                if d_bias_W is not None:
                    d_bias_W += d_logits_NV.sum(0)
                d_logits_NV = round_up(d_logits_NV, dtype)
                d_hidden[chunk.at] = (d_logits_NV @ product_VD[:pad_id])[: len(rows_ND)]
                if dtype == d_weight.dtype:
                    d_weight[:pad_id].addmm_(d_logits_NV.t(), hidden)
                else:
                    d_weight[:pad_id] += d_logits_NV.t() @ hidden
                del logits_NV, d_logits_NV  # before the next chunk makes its own
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        grad = grads[0]
        return d_hidden * grad, d_weight * grad, None if d_bias is None else d_bias * grad, None, None, None
