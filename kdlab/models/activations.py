"""What a transformer keeps of a training forward for its backward, in bytes, from sizes alone; no torch.

Counted are the tensors that autograd saves, as measured on a CPU (tests/unit/test_activations.py), every position taken
as real; the rows that products.py adds in bf16 on a CPU, 63 at most, are left out. With D the width, F the feed-forward
width, M source and N target positions, c = 4 bytes (fp32) or 2 (bf16 autocast), post-norm, ReLU, a layer keeps:

    encoder  fp32: 7 M D + F M + 3 M D (query, key, value) + scores        times 4
             bf16: 2 M D * 4  +  (5 M D + F M + 3 M D + scores) * 2
    decoder  fp32: 11 N D + F N + 4 N D + 2 R S D + scores                 times 4
             bf16: 3 N D * 4  +  (8 N D + F N + 4 N D + 2 R S D + scores) * 2, and the source once more: M D * 2

scores: one number for each pair of positions that attention compares and each head, three with attention dropout; on a
GPU the fused kernel keeps its output and a number a query and head instead. Dropout keeps its mask (there one byte).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FP32 = 4
# Tensors of the feed-forward width: what the activation itself keeps, and the input of the second matrix.
INNER = {"relu": 1, "gelu": 2, "silu": 2, "swiglu": 4}


@dataclass(frozen=True)
class Microbatch:
    """How many sentences at once, and how long: B sources of S positions, R target rows of T positions."""

    num_sources: int
    src_len: int
    num_rows: int
    tgt_len: int

    @property
    def src(self) -> int:
        """Source positions, M."""
        return self.num_sources * self.src_len

    @property
    def tgt(self) -> int:
        """Target positions, N."""
        return self.num_rows * self.tgt_len


@dataclass(frozen=True)
class Activations:
    """Bytes: of each layer, of what is outside the layers, and of outputs that only the loss may still look at."""

    encoder_layer: int
    decoder_layer: int
    outside: int
    outputs: int
    layers: tuple[int, int]
    layer_inputs: int

    def total(self, *, checkpointing: bool = False) -> int:
        """Of the whole model; `checkpointing`: each layer keeps its input and is computed again in the backward."""
        if checkpointing:
            return self.layer_inputs + max(self.encoder_layer, self.decoder_layer) + self.outside
        inside = self.layers[0] * self.encoder_layer + self.layers[1] * self.decoder_layer
        return inside + self.outside + self.outputs


def activations(architecture: Mapping[str, Any], microbatch: Microbatch, *, bf16: bool, on_gpu: bool) -> Activations:
    """What a model of this architecture keeps of one microbatch.

    Args:
        architecture: the arguments of TransformerConfig.
        bf16: under autocast.
        on_gpu: the fused attention kernel, and masks of one byte; as torch documents them, not measured here.
    """
    sizes = _Sizes(architecture, microbatch, 2 if bf16 else FP32, on_gpu)
    width, pre, bf16_only = sizes.width, sizes.pre, FP32 if bf16 else 0
    src, tgt = microbatch.src, microbatch.tgt
    depth = architecture["num_encoder_layers"], architecture["num_decoder_layers"]
    # embeddings: ids and dropout; the source as keys and values see it; behind pre-norm stacks a norm each
    outside = src * 8 + tgt * 8 + sizes.noise(src * width, FP32) + sizes.noise(tgt * width, FP32)
    outside += src * width * (sizes.compute * depth[1] if bf16 else FP32)
    if pre:
        outside += sum(n * (width * FP32 + 2 * FP32) for n in (src, tgt))
    # Outputs of layers are in ModelOutput until the loss is made; those that autograd saves anyway count there.
    kept = 0 if pre else src * width * depth[0] * bf16_only + tgt * width * max(0, depth[1] - 1) * bf16_only
    outputs = kept + tgt * width * FP32
    layer_inputs = (src * depth[0] + tgt * depth[1] + src) * width * FP32
    return Activations(sizes.encoder(), sizes.decoder(), outside, outputs, depth, layer_inputs)


def layer_outputs(architecture: Mapping[str, Any], microbatch: Microbatch) -> int:
    """Bytes of all layers' outputs, in fp32: what a model without gradient still holds while the loss is made."""
    per_layer = (
        microbatch.src * architecture["num_encoder_layers"] + microbatch.tgt * architecture["num_decoder_layers"]
    )
    return (per_layer + microbatch.tgt) * architecture["d_model"] * FP32


class _Sizes:
    """Bytes of the parts of a layer."""

    def __init__(self, architecture: Mapping[str, Any], microbatch: Microbatch, compute: int, on_gpu: bool):
        self.width, self.d_ff, self.heads = (architecture[name] for name in ("d_model", "d_ff", "num_heads"))
        self.pre = architecture.get("norm", "post") == "pre"
        self.inner = INNER[architecture.get("activation", "relu")]
        self.dropout = architecture.get("dropout", 0.1) > 0
        self.attention_dropout = architecture.get("attention_dropout", 0.0) > 0
        self.microbatch, self.compute, self.on_gpu = microbatch, compute, on_gpu

    def encoder(self) -> int:
        """Self-attention and feed-forward."""
        batch = self.microbatch
        return self._self(batch.src, batch.num_sources, batch.src_len) + self._feed_forward(batch.src)

    def decoder(self) -> int:
        """Self-attention, attention to the source, feed-forward."""
        batch = self.microbatch
        cross = self._sublayer(batch.tgt) + batch.tgt * self.width * 2 * self.compute  # merged heads, query
        cross += 2 * batch.num_rows * batch.src_len * self.width * self.compute  # keys and values
        cross += self._scores(batch.num_rows, batch.tgt_len, batch.src_len)
        return self._self(batch.tgt, batch.num_rows, batch.tgt_len) + cross + self._feed_forward(batch.tgt)

    def noise(self, numbers: int, size: int) -> int:
        """The mask of a dropout."""
        return numbers * (1 if self.on_gpu else size) if self.dropout else 0

    def _self(self, positions: int, rows: int, length: int) -> int:
        own = positions * self.width * 4 * self.compute  # merged heads; query, key and value
        return self._sublayer(positions) + own + self._scores(rows, length, length)

    def _feed_forward(self, positions: int) -> int:
        return self._sublayer(positions) + positions * self.d_ff * self.inner * self.compute

    def _sublayer(self, positions: int) -> int:
        """Around each: input of the norm and its statistics, input of the first matrix, mask of the dropout."""
        numbers = positions * self.width
        return numbers * (FP32 + self.compute) + positions * 2 * FP32 + self.noise(numbers, self.compute)

    def _scores(self, rows: int, queries: int, keys: int) -> int:
        if self.on_gpu:
            return rows * queries * (self.width * self.compute + self.heads * FP32)
        return rows * self.heads * queries * keys * self.compute * (3 if self.attention_dropout else 1)
