"""The random start of a model."""

from __future__ import annotations

import torch
from torch import nn

from kdlab.models.transformer import Transformer

# Linear layers that hold several matrices one above the other: each is initialised as the matrix that it is.
FUSED = {"qkv_proj": 3, "kv_proj": 2}


@torch.no_grad()
def random_init(model: Transformer, seed: int) -> None:
    """Xavier-uniform matrices, zero biases, unit norms, embeddings normal(0, D**-0.5) with a zero padding row.

    A function of the architecture and the seed alone: drawn on the CPU from a generator of its own, in order of names.
    Source: Glorot & Bengio 2010; Vaswani et al. 2017 for the embeddings.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(weight: torch.Tensor) -> None:
        drawn = torch.empty(weight.shape).normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
        drawn[-1] = 0.0  # the padding id is the last
        weight.copy_(drawn)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            blocks = FUSED.get(name.rpartition(".")[2], 1)
            if name.endswith("fc1") and model.config.activation == "swiglu":
                blocks = 2
            drawn = torch.empty(module.weight.shape)
            for block in drawn.chunk(blocks):
                nn.init.xavier_uniform_(block, generator=generator)
            module.weight.copy_(drawn)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            normal(module.weight)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
    if model.config.tie == "none":
        normal(model.softmax_weight)
    if model.config.softmax_bias:
        model.softmax_bias.zero_()
    model.reset_positions()
