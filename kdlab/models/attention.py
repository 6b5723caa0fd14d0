"""Attention of the transformer: the kernel, self- and cross-attention, and what incremental decoding remembers.

H heads, K = D / H their width (the letter K is used nowhere else for a size in this file).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kdlab.models.packing import Packing
from kdlab.products import Linear

# Finite, so that a query that may see nothing gives no NaN; exp() of it is exactly 0 in fp32 and bf16.
MASKED = -1e9
# Positions by which a cache grows: few enough to copy little when beams move, enough not to grow at every step.
CACHE_STEP = 8


def attend(
    query_BHTK: Float[Tensor, "B H T K"],
    key_BHSK: Float[Tensor, "B H S K"],
    value_BHSK: Float[Tensor, "B H S K"],
    visible: Bool[Tensor, "..."] | None,
    dropout: float,
) -> Float[Tensor, "B H T K"]:
    """Softmax attention, scaled by K**-0.5; `visible` (True = may be seen) broadcasts to (B, H, T, S).

    On a CPU two matrix products and a softmax: torch's fused kernel is five times slower there in bf16.
    The CPU softmax of bf16 scores works in fp32 inside.
    """
    if query_BHTK.device.type != "cpu" and len(query_BHTK):  # its kernels know no empty batch
        return F.scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, attn_mask=visible, dropout_p=dropout)
    B, H, T, K = query_BHTK.shape
    S = key_BHSK.shape[2]
    scores = torch.bmm(query_BHTK.reshape(B * H, T, K), key_BHSK.reshape(B * H, S, K).transpose(1, 2))
    scores_BHTS = scores.view(B, H, T, S)
    if visible is None:
        scores_BHTS = scores_BHTS * K**-0.5
    else:
        bias = scores.new_zeros(visible.shape).masked_fill_(~visible, MASKED)
        scores_BHTS = torch.add(bias, scores_BHTS, alpha=K**-0.5)
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1)
    if dropout:
        weights_BHTS = F.dropout(weights_BHTS, dropout)
    return torch.bmm(weights_BHTS.view(B * H, T, S), value_BHSK.reshape(B * H, S, K)).view(B, H, T, K)


def split_heads(x_BTD: Float[Tensor, "B T D"], parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Cuts a fused projection into `parts` contiguous tensors (B, H, T, K)."""
    B, T, width = x_BTD.shape
    heads = x_BTD.view(B, T, parts, num_heads, width // (parts * num_heads)).permute(2, 0, 3, 1, 4)
    return heads.contiguous().unbind(0)


def merge_heads(x_BHTK: Float[Tensor, "B H T K"]) -> Float[Tensor, "B T D"]:
    """Puts the heads of every position side by side again."""
    return x_BHTK.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, query, key and value projected by one matrix."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv_proj = Linear(d_model, 3 * d_model)
        self.out_proj = Linear(d_model, d_model)

    def forward(
        self, x_ND: Float[Tensor, "N D"], packing: Packing, visible: Bool[Tensor, "..."]
    ) -> Float[Tensor, "N D"]:
        query, key, value = split_heads(packing.unpack(self.qkv_proj(x_ND)), 3, self.num_heads)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(packing.pack(merge_heads(attend(query, key, value, visible, dropout))))

    def step(self, x_RD: Float[Tensor, "R D"], state: DecoderState, layer: int) -> Float[Tensor, "R D"]:
        """One new position of every row, which sees itself and all before it."""
        query, key, value = split_heads(self.qkv_proj(x_RD)[:, None], 3, self.num_heads)
        keys, values = state.append(layer, key, value)
        return self.out_proj(merge_heads(attend(query, keys, values, None, 0.0)).squeeze(1))


class CrossAttention(nn.Module):
    """Attention of target positions to encoded sources, whose keys and values are projected once per source."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj = Linear(d_model, d_model)
        self.kv_proj = Linear(d_model, 2 * d_model)
        self.out_proj = Linear(d_model, d_model)

    def keys_values(self, memory_MD: Float[Tensor, "M D"], packing: Packing) -> tuple[Tensor, ...]:
        """Keys and values (B, H, S, K) of encoded sources."""
        return split_heads(packing.unpack(self.kv_proj(memory_MD)), 2, self.num_heads)

    def forward(
        self,
        x_ND: Float[Tensor, "N D"],
        packing: Packing,
        memory: tuple[Float[Tensor, "R H S K"], ...],
        visible: Bool[Tensor, "..."],
    ) -> Float[Tensor, "N D"]:
        (query,) = split_heads(packing.unpack(self.q_proj(x_ND)), 1, self.num_heads)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(packing.pack(merge_heads(attend(query, memory[0], memory[1], visible, dropout))))

    def step(self, x_RD: Float[Tensor, "R D"], state: DecoderState, layer: int) -> Float[Tensor, "R D"]:
        """One new position of every row; the rows of a sentence are the queries of one attention to its source."""
        (query,) = split_heads(self.q_proj(x_RD).view(-1, state.beam_size, x_RD.shape[-1]), 1, self.num_heads)
        key, value = state.cross[layer]
        attended = attend(query, key, value, state.visible_B11S, 0.0)
        return self.out_proj(merge_heads(attended).view(x_RD.shape))


class DecoderState:
    """What incremental decoding remembers: R = B * beam_size rows, those of one sentence side by side."""

    def __init__(self, beam_size: int, visible_B11S: Bool[Tensor, "B 1 1 S"], cross: list[tuple[Tensor, ...]]):
        self.beam_size = beam_size
        self.length = 0  # positions decoded so far
        self.visible_B11S = visible_B11S
        self.cross = cross  # per layer: keys and values (B, H, S, K), one per sentence and not per row
        # Keys and values of each layer in turn, (R, H, at least length, K), and one more of that size to reorder into:
        # fresh memory for every reordering costs more than the copy.
        self._past: list[Tensor] = []
        self._spare: Tensor | None = None

    def append(
        self, layer: int, key_RH1K: Float[Tensor, "R H 1 K"], value_RH1K: Float[Tensor, "R H 1 K"]
    ) -> tuple[Tensor, Tensor]:
        """Adds the newest position of a layer; all its keys and values, (R, H, T, K)."""
        R, H, _, K = key_RH1K.shape
        for slot, newest in ((2 * layer, key_RH1K), (2 * layer + 1, value_RH1K)):
            if slot == len(self._past):
                self._past.append(newest.new_empty(R, H, CACHE_STEP, K))
            elif self.length == self._past[slot].shape[2]:
                grown = newest.new_empty(R, H, self.length + CACHE_STEP, K)
                grown[:, :, : self.length] = self._past[slot]
                self._past[slot] = grown
            self._past[slot][:, :, self.length] = newest[:, :, 0]
        keys, values = (self._past[slot][:, :, : self.length + 1] for slot in (2 * layer, 2 * layer + 1))
        return keys, values

    def reorder(self, rows: Int[Tensor, "R"]) -> None:
        """Row r goes on from what row `rows[r]`, of the same sentence, has decoded."""
        for slot, past in enumerate(self._past):
            if self._spare is None or self._spare.shape[1:] != past.shape[1:] or len(self._spare) < len(rows):
                self._spare = past.new_empty(len(rows), *past.shape[1:])
            reordered = self._spare[: len(rows)]
            torch.index_select(past, 0, rows, out=reordered)
            self._past[slot], self._spare = reordered, past

    def keep(self, sentences: Int[Tensor, "B"], rows: Int[Tensor, "R"] | None = None) -> None:
        """Drops every sentence that is not in `sentences` (positions in the present batch, ascending).

        Args:
            rows: what the rows that stay go on from, as for `reorder`; each from itself if left out.
        """
        if rows is None:
            rows = (
                sentences[:, None] * self.beam_size + torch.arange(self.beam_size, device=sentences.device)
            ).flatten()
        self.reorder(rows)
        self.cross = [tuple(x.index_select(0, sentences) for x in layer) for layer in self.cross]
        self.visible_B11S = self.visible_B11S.index_select(0, sentences)
