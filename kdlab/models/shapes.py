"""The parameters of a transformer from its configuration alone; no torch, so that memory is known before a GPU is."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

Shapes = dict[str, tuple[int, ...]]

# TransformerConfig's defaults of what shapes a tensor.
DEFAULTS: dict[str, Any] = {"activation": "relu", "norm": "post", "tie": "all", "softmax_bias": False}


def parameter_shapes(architecture: Mapping[str, Any]) -> Shapes:
    """Name and shape of every parameter, in the order of the model's own `named_parameters()`; a tied one once.

    Args:
        architecture: the arguments of TransformerConfig; a `_target_` beside them does not matter.
    """
    given = {**DEFAULTS, **architecture}
    width, tie = given["d_model"], given["tie"]
    # A module's own parameters come before those of its submodules.
    shapes: Shapes = {"softmax_weight": (given["tgt_vocab_size"], width)} if tie == "none" else {}
    if given["softmax_bias"]:
        shapes["softmax_bias"] = (given["tgt_vocab_size"],)
    shapes["src_embedding.weight"] = (given["src_vocab_size"], width)
    if tie != "all":
        shapes["tgt_embedding.weight"] = (given["tgt_vocab_size"], width)
    for stack in ("encoder", "decoder"):
        for layer in range(given[f"num_{stack}_layers"]):
            inside = _layer(stack, width, given["d_ff"], given["activation"] == "swiglu")
            shapes |= {f"{stack}.{layer}.{name}": shape for name, shape in inside.items()}
    if given["norm"] == "pre":
        for stack in ("encoder", "decoder"):
            shapes |= _norm(f"{stack}_norm", width)
    return shapes


def num_parameters(shapes: Shapes) -> int:
    """Numbers in all of them."""
    return sum(map(prod, shapes.values()))


def shard_size(shapes: Shapes, num_parts: int) -> int:
    """Numbers in the largest part where every tensor is cut along its first dimension, as FSDP2 does."""
    return sum(ceil(shape[0] / num_parts) * prod(shape[1:]) for shape in shapes.values())


def groups(shapes: Shapes) -> tuple[list[Shapes], Shapes]:
    """The parameters of each layer; and all others: embeddings, head, final norms."""
    layers: dict[str, Shapes] = {}
    rest: Shapes = {}
    for name, shape in shapes.items():
        stack, _, inside = name.partition(".")
        if stack in ("encoder", "decoder"):
            layers.setdefault(f"{stack}.{inside.partition('.')[0]}", {})[name] = shape
        else:
            rest[name] = shape
    return list(layers.values()), rest


def is_linear(name: str) -> bool:
    """Whether a parameter is the weight or bias of a linear layer inside the stacks: what bf16 has a copy of."""
    return "_proj." in name or ".fc1." in name or ".fc2." in name


def _layer(stack: str, width: int, d_ff: int, gated: bool) -> Shapes:
    is_decoder = stack == "decoder"
    shapes = _linear("self_attention.qkv_proj", width, 3 * width) | _linear("self_attention.out_proj", width, width)
    if is_decoder:
        for name, size in (("q_proj", width), ("kv_proj", 2 * width), ("out_proj", width)):
            shapes |= _linear(f"cross_attention.{name}", width, size)
    shapes |= _linear("feed_forward.fc1", width, d_ff * (2 if gated else 1)) | _linear("feed_forward.fc2", d_ff, width)
    for around in ("around_self", *(("around_cross",) if is_decoder else ()), "around_ff"):
        shapes |= _norm(f"{around}.norm", width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
