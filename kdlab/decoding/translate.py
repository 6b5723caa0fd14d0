"""Translation of many sentences: sorted, cut into batches by tokens, searched, put back into their order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from kdlab.data.decode_plan import DecodePlan
from kdlab.decoding.beam import BeamConfig, Hypothesis, beam_search
from kdlab.decoding.engine import Candidate
from kdlab.errors import UserError
from kdlab.models.int8 import Int8Linear, to_int8
from kdlab.models.transformer import Transformer

Precision = str  # "fp32", "bf16" or "int8"
Found = TypeVar("Found")


def plan_batches(lengths: Sequence[int], *, batch_tokens: int, beam_size: int) -> list[list[int]]:
    """Positions of the sentences of each batch, longest first, as DecodePlan has them."""
    plan = DecodePlan.make(np.array(lengths, np.int32), batch_tokens=batch_tokens, width=beam_size)
    return [plan.rows(batch).tolist() for batch in range(plan.num_batches)]


def translate(
    model: Transformer,
    src_ids: Sequence[Sequence[int]],
    config: BeamConfig,
    *,
    batch_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of every source (ids, EOS last), in the order of the sources.

    Args:
        progress: called with the number of sentences done after each batch, e.g. the `update` of a bar.
    Raises: UserError where a source is longer than the model's positions, or scores are not numbers.
    """
    limit = model.config.max_positions
    for index, ids in enumerate(src_ids):
        if len(ids) > limit:
            raise UserError(
                f"sentence {index + 1} has {len(ids)} tokens, but this model was built for at most {limit} "
                f"(max_positions); split or drop it"
            )

    def search(batches: Iterable[list[int]]) -> Iterator[list[list[Hypothesis]]]:
        for batch in batches:
            yield beam_search(model, [list(src_ids[at]) for at in batch], config)

    training = model.training
    model.eval()
    try:
        # The precision is that of the weights; a caller's autocast would also keep casts made without gradient.
        with torch.autocast(model.positions.device.type, enabled=False):
            lengths = [len(ids) for ids in src_ids]
            found = planned(search, lengths, batch_tokens=batch_tokens, beam_size=config.beam_size, progress=progress)
    finally:
        model.train(training)
    refuse_nan(found)
    return found


def planned(
    search: Callable[[list[list[int]]], Iterator[list[Found]]],
    lengths: Sequence[int],
    *,
    batch_tokens: int,
    beam_size: int,
    progress: Callable[[int], object] | None = None,
) -> list[Found]:
    """What a search of planned batches finds, in the order of the sentences.

    Args:
        search: gives what it finds of every sentence of each batch, which is a list of positions in `lengths`.
        progress: called with the number of sentences done after each batch.
    """
    batches = plan_batches(lengths, batch_tokens=batch_tokens, beam_size=beam_size)
    found: dict[int, Found] = {}
    for batch, results in zip(batches, search(batches), strict=True):
        found.update(zip(batch, results, strict=True))
        if progress is not None:
            progress(len(batch))
    return [found[index] for index in range(len(lengths))]


def refuse_nan(found: Sequence[Sequence[Hypothesis | Candidate]]) -> None:
    """Raises: UserError where a score is no number."""
    broken = sum(any(one.log_prob != one.log_prob for one in hypotheses) for hypotheses in found)
    if broken:
        raise UserError(
            f"{broken} of {len(found)} sentences got no hypothesis: the model's scores are not numbers (NaN), so its "
            "output would mean nothing; decode in fp32, or look at how the model was trained"
        )


def for_decoding(model: Transformer, *, precision: Precision, device: str) -> Transformer:
    """A model to decode with: itself, or a copy with bf16 weights, or (on a CPU) one with int8 linear layers and head.

    Between the layers of the int8 copy all is fp32: bf16 there rounds more, and gained nothing sure (d=512).
    In every precision the search itself is in fp32, behind the projection to the vocabulary.
    """
    if precision not in ("fp32", "bf16", "int8"):
        raise UserError(f"precision is {precision!r}, which decoding does not know; write fp32, bf16 or int8")
    if precision == "int8":
        if torch.device(device).type != "cpu":
            raise UserError(f"precision is int8 on {device}, but int8 layers are for CPUs alone; write bf16")
        model = copy.deepcopy(model).to(device)
        to_int8(model, torch.float32)
        head = model.head()
        model.projection = Int8Linear(head.weight_VD, head.bias_V, torch.float32)
    if precision == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
        model.reset_positions()  # the copy rounded them
    return model.to(device).eval()
