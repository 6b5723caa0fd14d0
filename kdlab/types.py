"""Tensors and batches that several rooms share; imports nothing of kdlab but its errors.

Shape letters, everywhere in kdlab:
    B sentences (sources)   R target rows (R > B when a source carries several targets)
    S source positions      T target positions
    N real target positions, picked out of (R, T); M real source positions, out of (B, S)
    V vocabulary            D width
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdlab.errors import UserError

Origin = Literal["gold", "pseudo", "all"]
Placement = Literal["replicated", "sharded", "offloaded"]  # of a teacher's weights: see teachers/frozen.py
Split = Literal["train", "valid"]  # whose rows a batch holds: row ids of the two may collide
Unit = Literal["tgt_token", "src_token", "sentence", "position"]  # position: padding too (objectives/ancestor.py)

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
    """One microbatch: sources, encoded once each, and their targets.

    Where the student's sources are changed (tags, noise), `clean_src_BC` has them as the corpus has them, C positions.
    """

    row_id_B: Int[Tensor, "B"]
    src_BS: Int[Tensor, "B S"]
    src_mask_BS: Bool[Tensor, "B S"]
    targets: Targets
    clean_src_BC: Int[Tensor, "B C"] | None = None
    clean_src_mask_BC: Bool[Tensor, "B C"] | None = None

    @property
    def clean(self) -> Batch:
        """The batch as a teacher sees it: the same targets on unchanged sources."""
        if self.clean_src_BC is None or self.clean_src_mask_BC is None:
            return self
        return Batch(self.row_id_B, self.clean_src_BC, self.clean_src_mask_BC, self.targets)

    def num_units(self, on: Origin, per: Unit) -> int:
        """How many units the rows of this origin hold; from masks alone."""
        targets = self.targets
        rows_R = targets.origin_R(on)
        if per == "tgt_token":
            return int(targets.mask_RT[rows_R].sum())
        if per == "src_token":
            return int(self.src_mask_BS.sum(-1)[targets.source_R[rows_R]].sum())
        return int(rows_R.sum()) * (targets.mask_RT.shape[1] if per == "position" else 1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self.targets, f.name).to(device) for f in fields(Targets)}
        clean, mask = self.clean_src_BC, self.clean_src_mask_BC
        return Batch(
            row_id_B=self.row_id_B.to(device),
            src_BS=self.src_BS.to(device),
            src_mask_BS=self.src_mask_BS.to(device),
            targets=Targets(**moved),
            clean_src_BC=None if clean is None else clean.to(device),
            clean_src_mask_BC=None if mask is None else mask.to(device),
        )


@dataclass(frozen=True)
class Head:
    """The projection to the vocabulary. The logit of `pad_id` is masked wherever logits are used."""

    weight_VD: Float[Tensor, "V D"]
    bias_V: Float[Tensor, "V"] | None
    pad_id: int


@dataclass(frozen=True)
class Side:
    """What one model hands to the token terms: the inputs of its head at real positions, and the head.

    dtype: of the product of the two; None: autocast's where that is on, else that of the hidden states.
    """

    hidden_ND: Float[Tensor, "N D"]
    head: Head
    dtype: torch.dtype | None = None

    def product_dtype(self) -> torch.dtype:
        """The type in which hidden states and head meet."""
        if self.dtype is not None:
            return self.dtype
        device = self.hidden_ND.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.hidden_ND.dtype


@dataclass(frozen=True)
class ModelOutput:
    """What a model returns for one batch, at real positions only: the input of its head and every layer's output.

    M real source positions, N real target positions, each row by row in the order of the batch.
    """

    decoder_ND: Float[Tensor, "N D"]
    encoder_layers: tuple[Float[Tensor, "M D"], ...]
    decoder_layers: tuple[Float[Tensor, "N D"], ...]


@dataclass(frozen=True)
class TopK:
    """A teacher's distribution at N positions: its K most likely tokens, and how much all others have together.

    The others' share depends on the temperature, so it is kept for each of some temperatures T:
        log_tails[n, i] = log sum over the others of p_v ** (1 / temperatures[i])   (-inf where there are no others)

    Units: nats; log_probs at temperature 1.
    """

    ids_NK: Int[Tensor, "N K"]
    log_probs_NK: Float[Tensor, "N K"]
    log_tails_NI: Float[Tensor, "N I"]
    temperatures: tuple[float, ...]

    @staticmethod
    def of(logits_NV: Float[Tensor, "N V"], num: int, temperatures: tuple[float, ...]) -> TopK:
        """The `num` greatest of logits."""
        log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
        log_probs_NK, ids_NK = log_probs_NV.topk(num, dim=-1)
        others_NV = log_probs_NV.scatter(1, ids_NK, float("-inf"))
        tails = [torch.logsumexp(others_NV / temperature, dim=-1) for temperature in temperatures]
        return TopK(ids_NK, log_probs_NK, torch.stack(tails, dim=-1), temperatures)

    def at(self, temperature: float) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N"]]:
        """Log-probabilities of the K tokens and of all others together. Raises: UserError for an unknown tail."""
        if temperature not in self.temperatures:
            raise UserError(
                f"temperature {temperature:g}, but the teacher's top-k cache knows the mass of the other tokens at "
                f"{', '.join(f'{known:g}' for known in self.temperatures)} alone, without which nothing is known; "
                "add the temperature to teacher_cache.temperatures, or use teacher_cache=hidden, exact at every one"
            )
        tail_N = self.log_tails_NI[:, self.temperatures.index(temperature)]
        scaled_NK = self.log_probs_NK / temperature
        total_N = torch.logaddexp(torch.logsumexp(scaled_NK, dim=-1), tail_N)
        # Finite, for a share of nothing times its logarithm is nothing; exp() of it is exactly 0.
        return scaled_NK - total_N[:, None], (tail_N - total_N).clamp(min=-1e4)

    def take(self, chosen: slice | Int[Tensor, "M"]) -> TopK:
        """The same at some of the positions."""
        return TopK(self.ids_NK[chosen], self.log_probs_NK[chosen], self.log_tails_NI[chosen], self.temperatures)
