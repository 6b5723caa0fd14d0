"""Tensors and batches that several rooms share; imports nothing of kdlab.

Shape letters, everywhere in kdlab:
    B sentences (sources)   R target rows (R > B when a source carries several targets)
    S source positions      T target positions
    N real positions, picked out of (R, T)
    V vocabulary            D width
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Origin = Literal["gold", "pseudo", "all"]
Unit = Literal["tgt_token", "src_token", "sentence"]

EOS_ID = 0  # ends every source and every tgt_out
UNK_ID = 1  # the padding id is the last one of each vocabulary: its size minus one; it also starts every tgt_in


@dataclass(frozen=True)
class Targets:
    """Target sides of a microbatch, gold and pseudo-labels alike.

    `tgt_in` begins with the start token (the padding id), `tgt_out` ends with EOS; `mask` marks real positions of
    `tgt_out`. It is made from lengths, never from token ids: a padding id is a start token too.
    """

    source_R: Int[Tensor, "R"]  # which source of the batch each row translates
    is_pseudo_R: Bool[Tensor, "R"]
    tgt_in_RT: Int[Tensor, "R T"]
    tgt_out_RT: Int[Tensor, "R T"]
    mask_RT: Bool[Tensor, "R T"]

    def origin_R(self, on: Origin) -> Bool[Tensor, "R"]:
        """Marks the rows that a term `on` gold, pseudo or all looks at."""
        if on == "all":
            return torch.ones_like(self.is_pseudo_R)
        return self.is_pseudo_R if on == "pseudo" else ~self.is_pseudo_R


@dataclass(frozen=True)
class Batch:
    """One microbatch: sources, encoded once each, and their targets."""

    row_id_B: Int[Tensor, "B"]
    src_BS: Int[Tensor, "B S"]
    src_mask_BS: Bool[Tensor, "B S"]
    targets: Targets

    def num_units(self, on: Origin, per: Unit) -> int:
        """How many target tokens, source tokens or sentences the rows of this origin hold; from masks alone."""
        targets = self.targets
        rows_R = targets.origin_R(on)
        if per == "tgt_token":
            return int(targets.mask_RT[rows_R].sum())
        if per == "src_token":
            return int(self.src_mask_BS.sum(-1)[targets.source_R[rows_R]].sum())
        return int(rows_R.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self.targets, f.name).to(device) for f in fields(Targets)}
        return Batch(
            row_id_B=self.row_id_B.to(device),
            src_BS=self.src_BS.to(device),
            src_mask_BS=self.src_mask_BS.to(device),
            targets=Targets(**moved),
        )


@dataclass(frozen=True)
class Head:
    """The projection to the vocabulary. The logit of `pad_id` is masked wherever logits are used."""

    weight_VD: Float[Tensor, "V D"]
    bias_V: Float[Tensor, "V"] | None
    pad_id: int


@dataclass(frozen=True)
class ModelOutput:
    """What a model returns for one batch: the input of its head and the output of every layer."""

    decoder_RTD: Float[Tensor, "R T D"]
    encoder_layers: tuple[Float[Tensor, "B S D"], ...]
    decoder_layers: tuple[Float[Tensor, "R T D"], ...]
