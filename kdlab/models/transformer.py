"""The encoder-decoder transformer: configuration, layers, the full forward and the incremental step.

Post-norm is as in Hugging Face's Marian and CTranslate2, so that exports can be exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdlab.errors import UserError, did_you_mean
from kdlab.models.attention import CrossAttention, DecoderState, SelfAttention
from kdlab.models.packing import Packing
from kdlab.products import Linear, cut, product_dtype, round_up
from kdlab.types import Head, ModelOutput

CHOICES = {
    "activation": ("relu", "gelu", "silu", "swiglu"),
    "norm": ("post", "pre"),
    "tie": ("all", "decoder_softmax", "none"),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The architecture, in plain values; all that is needed to build the model.

    norm: "post" has no final norms; "pre" has one behind each stack.
    tie: "all" = one matrix three ways; "decoder_softmax" = decoder embedding tied to the softmax; "none".
    activation: "gelu" is the exact (erf) one; "silu" is x sigmoid(x); "swiglu" has a third matrix of the same width.
    """

    src_vocab_size: int
    tgt_vocab_size: int
    num_encoder_layers: int
    num_decoder_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation: str = "relu"
    norm: str = "post"
    tie: str = "all"
    softmax_bias: bool = False
    max_positions: int = 1024

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.type == "int"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but no model can be built so; write at least 1")
        if self.d_model % self.num_heads or self.d_model % 2:
            raise UserError(
                f"d_model is {self.d_model} with num_heads {self.num_heads}, but heads must share it evenly and "
                f"positions need it even; write a multiple of {self.num_heads} that is even"
            )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{name} is {value!r}, which is not known; write one of {', '.join(choices)}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} is {getattr(self, name)}, but it is a probability; write a value in [0, 1)")
        if self.tie == "all" and self.src_vocab_size != self.tgt_vocab_size:
            raise UserError(
                f"tie is 'all' with vocabularies of {self.src_vocab_size} and {self.tgt_vocab_size}, but one matrix "
                "cannot serve two sizes; write tie=decoder_softmax or use a joint vocabulary"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """The configuration that `to_dict` wrote."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known) or f"; write one of {', '.join(known)}"
                raise UserError(f"unknown architecture key '{name}'{hint}")
        missing = [name for name in known[: known.index("dropout")] if name not in values]
        if missing:
            raise UserError(f"the architecture lacks {', '.join(missing)}: no model without them; write them")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sinusoids(num_positions: int, d_model: int) -> Float[Tensor, "P D"]:
    """Fixed positions: sines of pos / 10000**(2 i / d) in the first half, cosines in the second; pos from 0."""
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * torch.pow(
        10000.0, -torch.arange(0, d_model, 2, dtype=torch.float64) / d_model
    )
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def _is_identity(source_R: Int[Tensor, "R"], num_sources: int) -> bool:
    return torch.equal(source_R, torch.arange(num_sources, dtype=source_R.dtype))


def num_parameters(model: nn.Module) -> int:
    """Number of weights; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


class FeedForward(nn.Module):
    """The position-wise network of a layer."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        self.fc1 = Linear(config.d_model, config.d_ff * (2 if config.activation == "swiglu" else 1))
        self.fc2 = Linear(config.d_ff, config.d_model)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        dtype = product_dtype(self.fc1)
        inner = self.fc1(round_up(x, dtype) if dtype == torch.bfloat16 else x)  # once for both products
        if self.activation == "swiglu":
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * up
        elif self.activation == "silu":
            inner = F.silu(inner)
        else:
            inner = F.relu(inner) if self.activation == "relu" else F.gelu(inner)
        return cut(self.fc2(inner), len(x))


class Residual(nn.Module):
    """What surrounds a sub-layer: its norm (before or after), dropout and the sum with its input."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pre, self.dropout = config.norm == "pre", config.dropout
        self.norm = nn.LayerNorm(config.d_model, eps=1e-5)

    def enter(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.norm(x) if self.pre else x

    def leave(self, x: Float[Tensor, "... D"], inner: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        x = x + F.dropout(inner, self.dropout, self.training)
        return x if self.pre else self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = SelfAttention(config.d_model, config.num_heads, config.attention_dropout)
        self.feed_forward = FeedForward(config)
        self.around_self, self.around_ff = Residual(config), Residual(config)

    def forward(
        self, x: Float[Tensor, "M D"], packing: Packing, visible: Bool[Tensor, "B 1 1 S"]
    ) -> Float[Tensor, "M D"]:
        x = self.around_self.leave(x, self.self_attention(self.around_self.enter(x), packing, visible))
        return self.around_ff.leave(x, self.feed_forward(self.around_ff.enter(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, then feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = SelfAttention(config.d_model, config.num_heads, config.attention_dropout)
        self.cross_attention = CrossAttention(config.d_model, config.num_heads, config.attention_dropout)
        self.feed_forward = FeedForward(config)
        self.around_self, self.around_cross, self.around_ff = Residual(config), Residual(config), Residual(config)

    def forward(
        self,
        x: Float[Tensor, "N D"],
        packing: Packing,
        causal: Bool[Tensor, "T T"],
        memory_MD: Float[Tensor, "M D"],
        src_packing: Packing,
        source_R: Int[Tensor, "R"] | None,
        visible: Bool[Tensor, "R 1 1 S"],
    ) -> Float[Tensor, "N D"]:
        memory = self.cross_attention.keys_values(memory_MD, src_packing)
        if source_R is not None:
            memory = tuple(part.index_select(0, source_R) for part in memory)
        x = self.around_self.leave(x, self.self_attention(self.around_self.enter(x), packing, causal))
        x = self.around_cross.leave(x, self.cross_attention(self.around_cross.enter(x), packing, memory, visible))
        return self.around_ff.leave(x, self.feed_forward(self.around_ff.enter(x)))

    def step(self, x: Float[Tensor, "R D"], state: DecoderState, layer: int) -> Float[Tensor, "R D"]:
        """One new position of every row."""
        x = self.around_self.leave(x, self.self_attention.step(self.around_self.enter(x), state, layer))
        x = self.around_cross.leave(x, self.cross_attention.step(self.around_cross.enter(x), state, layer))
        return self.around_ff.leave(x, self.feed_forward(self.around_ff.enter(x)))


class Transformer(nn.Module):
    """Encoder and decoder up to, but without, the projection to the vocabulary: that is `head()`.

    Embeddings are scaled by sqrt(D); the row of the padding id (the last) is zero and stays zero.
    Targets are padded on the right only: the causal mask then hides padding from every real position.
    Layers and norms see real positions alone (packing.py).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        pad_src, pad_tgt = config.src_vocab_size - 1, config.tgt_vocab_size - 1
        self.src_embedding = nn.Embedding(config.src_vocab_size, config.d_model, padding_idx=pad_src)
        if config.tie != "all":
            self.tgt_embedding = nn.Embedding(config.tgt_vocab_size, config.d_model, padding_idx=pad_tgt)
        if config.tie == "none":
            self.softmax_weight = nn.Parameter(torch.zeros(config.tgt_vocab_size, config.d_model))
        if config.softmax_bias:
            self.softmax_bias = nn.Parameter(torch.zeros(config.tgt_vocab_size))
        self.positions: Tensor
        self.register_buffer("positions", None, persistent=False)
        self.reset_positions()
        # Keep a layer's inputs alone and compute it again in the backward pass: less memory, a third more work.
        self.recompute_layers = False
        # Stands in for the head's product where a model is decoded in int8 (decoding/translate.py).
        self.projection: nn.Module | None = None
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        if config.norm == "pre":
            self.encoder_norm = nn.LayerNorm(config.d_model, eps=1e-5)
            self.decoder_norm = nn.LayerNorm(config.d_model, eps=1e-5)

    def reset_positions(self) -> None:
        """Makes the table of positions anew, in fp32 (a model from the meta device has an empty one)."""
        table = sinusoids(self.config.max_positions, self.config.d_model)
        self.positions = table.to(self.src_embedding.weight.device)

    def _tgt_table(self) -> nn.Embedding:
        return self.src_embedding if self.config.tie == "all" else self.tgt_embedding

    def head(self) -> Head:
        """The projection of decoder outputs to the vocabulary."""
        weight = self.softmax_weight if self.config.tie == "none" else self._tgt_table().weight
        bias = self.softmax_bias if self.config.softmax_bias else None
        return Head(weight_VD=weight, bias_V=bias, pad_id=self.config.tgt_vocab_size - 1)

    def logits(self, hidden_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Decoder outputs through the head, that of the padding id included."""
        if self.projection is not None:
            return self.projection(hidden_ND)
        head = self.head()
        rows_ND = round_up(hidden_ND, hidden_ND.dtype)
        return F.linear(rows_ND, head.weight_VD, head.bias_V)[: len(hidden_ND)]

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [cast(DecoderLayer, layer) for layer in self.decoder]

    def _embed(self, table: nn.Embedding, ids: Int[Tensor, "... T"], start: int = 0) -> Float[Tensor, "... T D"]:
        end = start + ids.shape[-1]
        self._fits(end)
        return self._embedded(table, ids, self.positions[start:end])

    def _embed_packed(self, table: nn.Embedding, ids_BT: Int[Tensor, "B T"], packing: Packing) -> Float[Tensor, "N D"]:
        self._fits(ids_BT.shape[1])
        if packing.index_N is None:
            return self._embed(table, ids_BT).flatten(0, 1)
        return self._embedded(table, packing.pack(ids_BT), self.positions[packing.columns()])

    def _embedded(self, table: nn.Embedding, ids: Tensor, positions: Tensor) -> Tensor:
        # Summed in the precision of the table of positions, then in that of the weights.
        x = table(ids) * self.config.d_model**0.5 + positions
        return F.dropout(x.to(table.weight.dtype), self.config.dropout, self.training)

    def _fits(self, num_positions: int) -> None:
        if num_positions > self.config.max_positions:
            raise UserError(
                f"a sequence of {num_positions} tokens is longer than max_positions {self.config.max_positions}, the "
                "most this model was built for; split or drop such lines, or build the model with more positions"
            )

    def _through(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.recompute_layers and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
        return cast(Tensor, layer(*inputs))

    def encode(
        self, src_BS: Int[Tensor, "B S"], src_mask_BS: Bool[Tensor, "B S"], packing: Packing
    ) -> tuple[Float[Tensor, "M D"], tuple[Float[Tensor, "M D"], ...]]:
        """What the decoder attends to, and the output of every layer; `packing` is that of the mask."""
        x, visible = self._embed_packed(self.src_embedding, src_BS, packing), src_mask_BS[:, None, None, :]
        layers = []
        for layer in self.encoder:
            x = self._through(layer, x, packing, visible)
            layers.append(x)
        return (self.encoder_norm(x) if self.config.norm == "pre" else x), tuple(layers)

    def forward(
        self,
        src_BS: Int[Tensor, "B S"],
        src_mask_BS: Bool[Tensor, "B S"],
        tgt_in_RT: Int[Tensor, "R T"],
        source_R: Int[Tensor, "R"] | None = None,
        tgt_mask_RT: Bool[Tensor, "R T"] | None = None,
    ) -> ModelOutput:
        """Hidden states of the real target positions; row r translates source `source_R[r]` (None: source r).

        Masks are True at real positions; without `tgt_mask_RT` all target positions are computed. Sources are encoded,
        and their keys and values projected, once each.
        """
        packing = Packing.of(src_mask_BS)
        memory_MD, encoder_layers = self.encode(src_BS, src_mask_BS, packing)
        visible = src_mask_BS[:, None, None, :]
        # Looking for the identity would make a GPU wait; there the selection itself is cheap.
        if source_R is not None and source_R.device.type == "cpu" and _is_identity(source_R, len(src_BS)):
            source_R = None
        if source_R is not None:
            visible = visible.index_select(0, source_R)
        R, T = tgt_in_RT.shape
        causal = torch.ones(T, T, dtype=torch.bool, device=tgt_in_RT.device).tril()
        tgt_packing = Packing((R, T), None, None) if tgt_mask_RT is None else Packing.of(tgt_mask_RT)
        x, decoder_layers = self._embed_packed(self._tgt_table(), tgt_in_RT, tgt_packing), []
        for layer in self._decoder_layers():
            x = self._through(layer, x, tgt_packing, causal, memory_MD, packing, source_R, visible)
            decoder_layers.append(x)
        if self.config.norm == "pre":
            x = self.decoder_norm(x)
        return ModelOutput(decoder_ND=x, encoder_layers=encoder_layers, decoder_layers=tuple(decoder_layers))

    def start(self, src_BS: Int[Tensor, "B S"], src_mask_BS: Bool[Tensor, "B S"], beam_size: int = 1) -> DecoderState:
        """Encodes sources for decoding `beam_size` rows of each, step by step."""
        packing = Packing.of(src_mask_BS)
        memory_MD, _ = self.encode(src_BS, src_mask_BS, packing)
        cross = [layer.cross_attention.keys_values(memory_MD, packing) for layer in self._decoder_layers()]
        return DecoderState(beam_size, src_mask_BS[:, None, None, :], cross)

    def step(self, tokens_R: Int[Tensor, "R"], state: DecoderState) -> Float[Tensor, "R D"]:
        """Hidden states after one more token of every row, for the head; moves the state on."""
        x = self._embed(self._tgt_table(), tokens_R[:, None], start=state.length).squeeze(1)
        for index, layer in enumerate(self._decoder_layers()):
            x = layer.step(x, state, index)
        state.length += 1
        return self.decoder_norm(x) if self.config.norm == "pre" else x
