"""Beam search over one batch, with the semantics of CTranslate2.

    score = sum of log p / length ** length_penalty,   EOS counted in both

At every step the 2 K best continuations of a sentence's K beams are taken; those among the first K that end in EOS are
finished hypotheses, the first K that do not end go on. A sentence is done when K hypotheses are finished, or at its
greatest length; with length_penalty 0, where scores can only fall, already when the best continuation of a step ended.
The padding id is never produced, and EOS not at the first step (ensemble.py).
Equal scores are settled by the lower beam, then the lower id.
Source: CTranslate2's beam search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.decoding.ensemble import Ensemble
from kdlab.errors import UserError
from kdlab.models.transformer import Transformer
from kdlab.types import EOS_ID

# A batch is packed anew when less than this share of it is still searched: packing costs a copy of all caches.
REPACK_BELOW = 0.8
# Width of the blocks of the vocabulary whose maxima are looked at first: a maximum is far cheaper than a top-k.
BLOCK = 64


@dataclass(frozen=True)
class BeamConfig:
    """How to search. A sentence may grow to max_length_ratio * (source tokens) + max_length_extra, EOS counted."""

    beam_size: int
    length_penalty: float
    n_best: int = 1
    max_length_ratio: float = 2.0
    max_length_extra: int = 10

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise UserError(f"beam_size is {self.beam_size}, but a search needs a beam; write 1 (greedy) or more")
        if not 1 <= self.n_best <= self.beam_size:
            raise UserError(
                f"n_best is {self.n_best} with beam_size {self.beam_size}, but a search finishes beam_size hypotheses; "
                f"write 1 to {self.beam_size}, or widen the beam"
            )
        if self.max_length_ratio < 0 or self.max_length_extra < 0 or self.max_length_ratio + self.max_length_extra < 1:
            raise UserError(
                f"max_length_ratio is {self.max_length_ratio} and max_length_extra {self.max_length_extra}, but no "
                "output could hold a token; write e.g. 2.0 and 10"
            )

    def max_length(self, num_src_tokens: int, max_positions: int) -> int:
        """Most tokens of a hypothesis, EOS counted; a function of this sentence alone."""
        return max(1, min(int(self.max_length_ratio * num_src_tokens + self.max_length_extra), max_positions))


@dataclass(frozen=True)
class Hypothesis:
    """One translation. `log_prob` in nats, EOS counted; not `finished`: cut off at the greatest length."""

    ids: list[int]  # without EOS
    score: float
    log_prob: float
    finished: bool

    @classmethod
    def scored(cls, ids: list[int], log_prob: float, config: BeamConfig, finished: bool) -> Hypothesis:
        """With the score that goes with its log-probability."""
        return cls(ids, log_prob / (len(ids) + finished) ** config.length_penalty, log_prob, finished)


@dataclass
class _Sentence:
    """A sentence while it is searched."""

    max_length: int
    best_ended: bool = False
    done: bool = False  # its rows may stay in the batch for a while; they are not looked at any more
    found: list[Hypothesis] = field(default_factory=list)

    def add(self, ids: list[int], log_prob: float, config: BeamConfig, finished: bool) -> None:
        self.found.append(Hypothesis.scored(ids, log_prob, config, finished))

    def close(self, length: int, config: BeamConfig) -> None:
        """Marks it done where the search may stop."""
        if config.length_penalty == 0:
            enough = self.best_ended and len(self.found) >= config.n_best
        else:
            enough = len(self.found) >= config.beam_size
        self.done = self.done or enough or length >= self.max_length


def best_candidates(
    log_probs_BKV: Float[Tensor, "B K V"], scores_BK: Float[Tensor, "B K"], num: int
) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"], Int[Tensor, "B C"]]:
    """The `num` best continuations of every sentence, best first: log-probability, beam, token.

    In two stages, exactly: every winner lies in one of the `num` blocks with the highest maxima.
    """
    _, K, V = log_probs_BKV.shape
    whole = V // BLOCK
    tops = [log_probs_BKV[..., : whole * BLOCK].unflatten(-1, (whole, BLOCK)).amax(-1)] if whole else []
    if V % BLOCK:
        tops.append(log_probs_BKV[..., whole * BLOCK :].amax(-1, keepdim=True))
    tops_BKM = torch.cat(tops, dim=-1) + scores_BK[..., None]
    M = tops_BKM.shape[-1]
    blocks = tops_BKM.flatten(1).topk(min(num, K * M), dim=1).indices.sort(dim=1).values
    beam, token = blocks.div(M, rounding_mode="floor"), blocks.remainder(M) * BLOCK
    token = token[..., None] + torch.arange(BLOCK, device=blocks.device)
    flat = (beam[..., None] * V + token.clamp(max=V - 1)).flatten(1)
    scores = log_probs_BKV.flatten(1).gather(1, flat).view(token.shape) + scores_BK.gather(1, beam)[..., None]
    scores = scores.masked_fill_(token >= V, -torch.inf).flatten(1)
    # Places ascend with (beam, token); a stable sort then settles equal scores by them.
    places = scores.topk(min(num, K * V), dim=1).indices.sort(dim=1).values
    scores, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    flat = flat.gather(1, places).gather(1, order)
    return scores, flat.div(V, rounding_mode="floor"), flat.remainder(V)


@torch.inference_mode()
def beam_search(model: Transformer | Ensemble, src_ids: list[list[int]], config: BeamConfig) -> list[list[Hypothesis]]:
    """The `n_best` best hypotheses of every source (which ends in EOS), best first, fewer where fewer were found.

    Cut-off hypotheses are returned only for a sentence of which none finished; where the model's scores are not
    numbers, one that is empty and has none either. The model must be in eval mode.
    """
    if not src_ids:
        return []
    asked = model if isinstance(model, Ensemble) else Ensemble([model])
    K, device = config.beam_size, asked.device
    limits = [config.max_length(len(ids), asked.max_positions) for ids in src_ids]
    sentences = [_Sentence(limit) for limit in limits]
    searched = list(sentences)  # those whose rows the batch still holds
    state = asked.start(src_ids, K)
    tokens_BK = torch.full((len(searched), K), asked.pad_id, device=device)
    history_BKT = tokens_BK[..., None][..., :0]
    scores_BK = torch.full((len(searched), K), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0  # all beams begin alike: only the first may speak

    for length in range(1, max(limits) + 1):
        log_probs_RV = asked.next_log_probs(tokens_BK.flatten(), state, may_end=length > 1)
        log_probs_BKV = log_probs_RV.unflatten(0, (len(searched), K))
        scores_BC, beams_BC, tokens_BC = best_candidates(log_probs_BKV, scores_BK, 2 * K)

        ends_BC = tokens_BC == EOS_ID
        for at, rank in (ends_BC[:, :K] & (scores_BC[:, :K] > -torch.inf)).nonzero().tolist():
            if not searched[at].done:
                ids = history_BKT[at, beams_BC[at, rank]].tolist()
                searched[at].add(ids, scores_BC[at, rank].item(), config, finished=True)
                searched[at].best_ended |= rank == 0

        goes_on_BK = ends_BC.int().sort(dim=1, stable=True).indices[:, :K]
        beams_BK, tokens_BK, scores_BK = (x.gather(1, goes_on_BK) for x in (beams_BC, tokens_BC, scores_BC))
        history_BKT = history_BKT.gather(1, beams_BK[..., None].expand(-1, -1, length - 1))
        history_BKT = torch.cat([history_BKT, tokens_BK[..., None]], dim=-1)

        for at, sentence in enumerate(searched):
            sentence.close(length, config)
            if sentence.done and not sentence.found:
                for ids, log_prob in zip(history_BKT[at].tolist(), scores_BK[at].tolist(), strict=True):
                    if log_prob > -torch.inf:
                        sentence.add(ids, log_prob, config, finished=False)
        remaining = [at for at, sentence in enumerate(searched) if not sentence.done]
        if not remaining:
            break
        first_B1 = torch.arange(len(searched), device=device)[:, None] * K
        rows_BK = first_B1 + beams_BK
        if len(remaining) < REPACK_BELOW * len(searched):
            kept = torch.tensor(remaining, device=device)
            state.keep(kept, rows_BK[kept].flatten())
            searched = [searched[at] for at in remaining]
            tokens_BK, scores_BK, history_BKT = tokens_BK[kept], scores_BK[kept], history_BKT[kept]
        elif not torch.equal(rows_BK.flatten(), torch.arange(rows_BK.numel(), device=device)):
            state.reorder(rows_BK.flatten())

    for sentence in sentences:
        if not sentence.found:
            sentence.found.append(Hypothesis([], math.nan, math.nan, finished=False))
    # The sort is stable: of equal scores the one found first leads.
    return [sorted(x.found, key=lambda found: -found.score)[: config.n_best] for x in sentences]
