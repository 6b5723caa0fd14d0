"""What a Hugging Face search may choose at each step, so that `generate` searches and draws as ours does.

Scores are normalised after what is forbidden has been left out, EOS is no first token, every sentence has a greatest
length of its own (generate knows one for a batch), and what is drawn for a line depends on no neighbour (sampling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdlab.decoding.sampling import Sampling, draw, keys_at

# In place of a log-probability: below every real one, above the -1e9 that generate takes for minus infinity.
CUT_OFF = -1e8


@dataclass(frozen=True)
class Rules:
    """Called by generate at every step with all rows: those of a sentence stand together."""

    forbidden_V: Bool[Tensor, "V"]
    eos_ids: list[int]
    prompt_length: int
    limits: Sequence[int]  # of each sentence: most tokens, EOS counted
    sampling: Sampling | None = None
    keys_R: Int[Tensor, "R"] | None = None  # of each row, where tokens are drawn

    def __call__(self, input_ids: Int[Tensor, "R T"], scores: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Scores of the next token."""
        length = input_ids.shape[1] - self.prompt_length
        log_probs_RV = self.log_probs(scores, first=length == 0)
        if self.sampling is not None and self.keys_R is not None:
            tokens_R = draw(log_probs_RV, keys_at(self.keys_R, length + 1), self.sampling)
            log_probs_RV = torch.full_like(log_probs_RV, -torch.inf).scatter(1, tokens_R[:, None], 0.0)
        # One step beyond its limit a hypothesis can only end, and behind all that ended by themselves.
        over = torch.tensor([length >= limit for limit in self.limits], device=scores.device)
        over_R = over.repeat_interleave(len(scores) // len(self.limits))
        log_probs_RV[over_R] = -torch.inf
        log_probs_RV[over_R, self.eos_ids[0]] = CUT_OFF
        return log_probs_RV

    def log_probs(self, scores: Float[Tensor, "*R V"], *, first: bool = False) -> Float[Tensor, "*R V"]:
        """Of what may be chosen; `first`: at the first step, where nothing may end."""
        scores = scores.float().masked_fill(self.forbidden_V, -torch.inf)
        if first:
            scores[..., self.eos_ids] = -torch.inf
        return scores.log_softmax(dim=-1)
