"""Ancestral sampling over one batch: translations drawn from the model's own distribution, or from its likely part.

At every step the next token is drawn with probability proportional to p ** (1 / temperature) among
    the `top_k` likeliest tokens, and of these
    the fewest likeliest that together hold the share `top_p` of what they all hold.
It is drawn as argmax of log p / temperature + g with Gumbel noise g, a hash of (seed, row id, sample, position, token):
what is drawn for a line depends on no neighbour, and rounding changes a draw only where the best two nearly tie.
Padding and EOS are left out as in beam search (ensemble.py).
Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Maddison et al. 2014 (Gumbel-max).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.decoding.beam import REPACK_BELOW, BeamConfig, Hypothesis, best_candidates
from kdlab.decoding.ensemble import Ensemble
from kdlab.errors import UserError
from kdlab.types import EOS_ID


@dataclass(frozen=True)
class Sampling:
    """From what to draw; None: from all tokens."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value, fits, want in (
            ("temperature", self.temperature, self.temperature > 0, "a number above 0, e.g. 1.0"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more, or null for all tokens"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or null for all"),
        ):
            if not fits:
                raise UserError(f"{name} is {value}, but then there is nothing to draw from; write {want}")


@torch.inference_mode()
def sample(
    asked: Ensemble, row_id: list[int], src_ids: list[list[int]], config: BeamConfig, sampling: Sampling
) -> list[list[Hypothesis]]:
    """`config.beam_size` samples of every source (which ends in EOS), the `n_best` best by score, finished ones first.

    `log_prob` is that of the model, without temperature and limits. The models must be in eval mode.
    """
    if not src_ids:
        return []
    K, device = config.beam_size, asked.device
    limits = [config.max_length(len(ids), asked.max_positions) for ids in src_ids]
    found: list[list[Hypothesis]] = [[] for _ in src_ids]
    searched = torch.arange(len(src_ids), device=device)  # those whose rows the batch still holds
    state = asked.start(src_ids, K)
    keys_BK = sample_keys(sampling.seed, torch.tensor(row_id, device=device), K)
    limits_B = torch.tensor(limits, device=device)
    alive_BK = torch.ones_like(keys_BK, dtype=torch.bool)
    tokens_BK = torch.full_like(keys_BK, asked.pad_id)
    total_BK = torch.zeros(keys_BK.shape, dtype=torch.float64, device=device)
    history_BKT = tokens_BK[..., None][..., :0]

    for length in range(1, max(limits) + 1):
        log_probs_RV = asked.next_log_probs(tokens_BK.flatten(), state, may_end=length > 1)
        tokens_R = draw(log_probs_RV, keys_at(keys_BK.flatten(), length), sampling)
        total_BK = total_BK + log_probs_RV.gather(1, tokens_R[:, None]).view_as(total_BK)
        tokens_BK = tokens_R.view_as(keys_BK)
        history_BKT = torch.cat([history_BKT, tokens_BK[..., None]], dim=-1)

        ends_BK = tokens_BK == EOS_ID
        closes_BK = alive_BK & (ends_BK | (limits_B <= length)[:, None])
        for at, rank in closes_BK.nonzero().tolist():
            ids, finished = history_BKT[at, rank].tolist(), bool(ends_BK[at, rank])
            best = Hypothesis.scored(ids[: length - finished], total_BK[at, rank].item(), config, finished)
            found[int(searched[at])].append(best)
        alive_BK = alive_BK & ~closes_BK
        remaining = alive_BK.any(dim=1)
        if not remaining.any():
            break
        if remaining.sum() < REPACK_BELOW * len(remaining):
            kept = remaining.nonzero()[:, 0]
            state.keep(kept)
            searched, keys_BK, limits_B, alive_BK = (x[kept] for x in (searched, keys_BK, limits_B, alive_BK))
            tokens_BK, total_BK, history_BKT = (x[kept] for x in (tokens_BK, total_BK, history_BKT))

    return [sorted(samples, key=lambda x: (not x.finished, -x.score))[: config.n_best] for samples in found]


def draw(log_probs_RV: Float[Tensor, "R V"], keys_R: Int[Tensor, "R"], sampling: Sampling) -> Int[Tensor, "R"]:
    """A token for every row; the same for equal log-probabilities, keys (`keys_at`) and settings."""
    scores = log_probs_RV / sampling.temperature
    tokens = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    if sampling.top_k is not None:
        zeros_R1 = scores.new_zeros(len(scores), 1)
        scores, _, tokens = best_candidates(scores[:, None], zeros_R1, min(sampling.top_k, scores.shape[1]))
    if sampling.top_p is not None and sampling.top_p < 1:
        if sampling.top_k is None:
            scores, tokens = scores.sort(dim=1, descending=True, stable=True)
        probs = scores.softmax(dim=1)
        # A token stays where those before it do not hold the share yet: the first always does.
        scores = scores.masked_fill(probs.cumsum(dim=1) - probs >= sampling.top_p, -torch.inf)
    best_R1 = (scores + _gumbel(keys_R, tokens)).argmax(dim=1, keepdim=True)
    return tokens.gather(1, best_R1).squeeze(1)


def sample_keys(seed: int, row_id_B: Int[Tensor, "B"], num_samples: int) -> Int[Tensor, "B K"]:
    """What the noise of a sample hangs on, besides position and token."""
    keys_B = _scrambled(_scrambled(torch.full_like(row_id_B, seed)) ^ row_id_B)
    return _scrambled(keys_B[:, None] ^ torch.arange(num_samples, device=row_id_B.device))


def keys_at(keys_R: Int[Tensor, "R"], position: int) -> Int[Tensor, "R"]:
    """What its noise hangs on at a position, the first being 1, besides the token."""
    return _scrambled(keys_R ^ position)


def _gumbel(keys_R: Int[Tensor, "R"], tokens_RC: Int[Tensor, "R C"]) -> Float[Tensor, "R C"]:
    """Standard Gumbel noise: entry `token` of the SplitMix64 stream that a row's key starts.

    -log(-log(1 - u)) for u in (0, 1): near 0, where the noise is large and decides, fp32 is finest.
    """
    bits = _scrambled((tokens_RC * _GOLDEN).add_(keys_R[:, None]))
    uniform = bits.bitwise_right_shift_(11).bitwise_and_((1 << 53) - 1).float().add_(0.5).mul_(2.0**-53)
    return uniform.neg_().log1p_().neg_().log_().neg_()


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed number: torch has no others of 64 bits on every device


def _scrambled(bits: Tensor) -> Tensor:
    """SplitMix64 of every number, as in data/mixing.py (integer arithmetic wraps)."""
    bits = bits + _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        bits = _shifted(bits, shift).mul_(factor)
    return _shifted(bits, 31)


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """bits ^ (bits >> shift), the shift filling up with zeros."""
    return (bits >> shift).bitwise_and_((1 << (64 - shift)) - 1).bitwise_xor_(bits)
