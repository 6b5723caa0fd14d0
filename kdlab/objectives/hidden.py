"""Sums of hidden terms over pairs of layers: which positions, which layers, through which projection."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kdlab.errors import UserError
from kdlab.objectives.objective import HiddenTerm, WeightedTerm
from kdlab.objectives.reduce import Reduced
from kdlab.types import Batch, ModelOutput, Origin


def projections(
    terms: Mapping[str, WeightedTerm], d_student: int, d_teacher: int, layers: Mapping[str, tuple[int, int]]
) -> nn.ModuleDict:
    """Learned maps from the student's width to the teacher's, one a pair of layers, for terms that ask for them.

    They train with the student and are no part of it. `layers`: (student, teacher) layers of each stack.
    Raises: UserError where widths differ and a term has no projection.
    """
    made = nn.ModuleDict()
    for name, weighted in terms.items():
        term = weighted.term
        assert isinstance(term, HiddenTerm)
        pairs = term.pairs(*layers[term.stack])
        if term.projection:
            made[name] = nn.ModuleList(nn.Linear(d_student, d_teacher, bias=False) for _ in pairs)
        elif d_student != d_teacher:
            raise UserError(
                f"the student's hidden states have width {d_student}, the teacher's {d_teacher}, so term '{name}' "
                f"cannot compare them; write objective.terms.{name}.term.projection=true, or choose a student of the "
                "teacher's width"
            )
    return made


def reduce_hidden(
    terms: Mapping[str, WeightedTerm],
    scales: Mapping[str, float],
    batch: Batch,
    student: ModelOutput,
    teacher: ModelOutput | None,
    maps: nn.ModuleDict,
) -> Reduced:
    """Sums every hidden term over the real positions of its rows, the mean over its pairs of layers, and scales it.

    A source that two rows translate counts once for each: so do its units.
    """
    dtype = torch.promote_types(student.decoder_ND.dtype, torch.float32)  # at least fp32, as logits
    loss = student.decoder_ND.new_zeros((), dtype=dtype)
    sums = {}
    for name, weighted in terms.items():
        term = weighted.term
        assert isinstance(term, HiddenTerm) and teacher is not None
        ours, theirs = _stack(student, term.stack), _stack(teacher, term.stack)
        index_N = _positions(batch, term.stack, weighted.on)
        total = student.decoder_ND.new_zeros((), dtype=dtype)
        pairs = term.pairs(len(ours), len(theirs))
        for number, (i, j) in enumerate(pairs):
            student_ND, teacher_ND = ours[i][index_N].to(dtype), theirs[j][index_N].to(dtype)
            if name in maps:
                with torch.autocast(student_ND.device.type, enabled=False):
                    student_ND = maps[name][number](student_ND)  # type: ignore[index]
            total = total + term(student_ND, teacher_ND).sum() / len(pairs)
        loss = loss + scales[name] * total
        sums[name] = total.detach()
    return Reduced(loss, sums)


def _stack(output: ModelOutput, stack: str) -> tuple[Float[Tensor, "N D"], ...]:
    return output.encoder_layers if stack == "encoder" else output.decoder_layers


def _positions(batch: Batch, stack: str, on: Origin) -> Int[Tensor, "N"]:
    """Indices into the packed positions of a stack: those of the rows that a term looks at."""
    targets = batch.targets
    rows_R: Bool[Tensor, "R"] = targets.origin_R(on)
    if stack == "decoder":
        return rows_R[:, None].expand_as(targets.mask_RT)[targets.mask_RT].nonzero().squeeze(-1)
    mask_BS = batch.src_mask_BS
    packed_BS = (mask_BS.flatten().cumsum(0) - 1).view(mask_BS.shape)
    sources = targets.source_R[rows_R]
    return packed_BS[sources][mask_BS[sources]]
