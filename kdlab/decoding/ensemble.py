"""The models that a search asks, one or several: what the next token of every row is likely to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.errors import UserError
from kdlab.models.attention import DecoderState
from kdlab.models.transformer import Transformer
from kdlab.types import EOS_ID


class Ensemble:
    """Models with one vocabulary that are asked together; a single one is an ensemble of itself.

        p(token | source, tokens before) = mean over the members of p_m(token | source, tokens before)

    A member's distribution is over the tokens that may follow: the padding id never, EOS not first; both are masked
    before its softmax. So the mean is over probabilities and not over their logarithms.
    Raises: UserError where the members' vocabularies differ in size (open_engine compares their pieces).
    """

    def __init__(self, members: Sequence[Transformer]):
        sizes = [(model.config.src_vocab_size, model.config.tgt_vocab_size) for model in members]
        for number, size in enumerate(sizes[1:], 2):
            if size != sizes[0]:
                raise UserError(
                    f"model {number} of the ensemble has vocabularies of {size[0]} and {size[1]} ids, the first "
                    f"{sizes[0][0]} and {sizes[0][1]}, but the mean of their probabilities needs one vocabulary; name "
                    "models that were trained with the same tokenizer"
                )
        self.members = list(members)
        self.max_positions = min(model.config.max_positions for model in members)
        self.pad_id, self.device = members[0].head().pad_id, members[0].positions.device

    def start(self, src_ids: list[list[int]], num_rows: int) -> EnsembleState:
        """Encodes sources (EOS last) for decoding `num_rows` rows of each."""
        src_pad_id = self.members[0].config.src_vocab_size - 1
        lengths = torch.tensor([len(ids) for ids in src_ids])
        mask_BS = torch.arange(int(lengths.max())) < lengths[:, None]
        src_BS = torch.full(mask_BS.shape, src_pad_id)
        src_BS[mask_BS] = torch.tensor([token for ids in src_ids for token in ids])
        src_BS, mask_BS = src_BS.to(self.device), mask_BS.to(self.device)
        return EnsembleState([model.start(src_BS, mask_BS, num_rows) for model in self.members])

    def next_log_probs(
        self, tokens_R: Int[Tensor, "R"], state: EnsembleState, *, may_end: bool
    ) -> Float[Tensor, "R V"]:
        """Log-probabilities, in fp32, of what follows one more token of every row; moves the state on."""
        found = []
        for model, own in zip(self.members, state.members, strict=True):
            logits_RV = model.logits(model.step(tokens_R, own)).float()
            logits_RV[:, self.pad_id] = -torch.inf
            if not may_end:
                logits_RV[:, EOS_ID] = -torch.inf
            found.append(torch.log_softmax(logits_RV, dim=-1))
        return found[0] if len(found) == 1 else reduce(torch.logaddexp, found) - math.log(len(found))


class EnsembleState:
    """What every member remembers of the rows; as models.attention.DecoderState."""

    def __init__(self, members: list[DecoderState]):
        self.members = members

    def reorder(self, rows: Int[Tensor, "R"]) -> None:
        for state in self.members:
            state.reorder(rows)

    def keep(self, sentences: Int[Tensor, "B"], rows: Int[Tensor, "R"] | None = None) -> None:
        for state in self.members:
            state.keep(sentences, rows)
