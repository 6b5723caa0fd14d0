"""A CTranslate2 model directory from one of our transformers; it gives the same outputs and scores (decoding/beam.py).

What has to be told to CTranslate2, because it would assume something else:
- positions: our table is stored (its own starts at 1 and interleaves);
- the start of a target: our padding row is zero, so the decoder starts from a zero embedding, as Marian's does;
- padding: its rows are left out of every table, so it has no id there and cannot be produced;
- EOS: added to a source (config.json), whose pieces are given without it.
config.json also holds `max_positions`, which CTranslate2 does not look at.
Source: CTranslate2 4.8, specs/transformer_spec.py; the Marian converter there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdlab.errors import UserError, import_extra
from kdlab.models.transformer import FeedForward, Residual, Transformer

# What the weights are stored in; computing is the engine's choice, on a CPU fp32 or int8.
QUANTIZATIONS = {"none": None, "int8": "int8", "bf16": "bfloat16", "fp16": "float16"}
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "silu": "SWISH", "swiglu": "SWISH"}


def export(
    model: Transformer,
    src_pieces: Sequence[str],
    tgt_pieces: Sequence[str],
    out: Path,
    *,
    quantization: str = "none",
) -> None:
    """Writes model.bin, vocabularies and config.json into `out`.

    Args:
        src_pieces: names of the source ids in their order, all but padding; EOS is the first.
        quantization: of the stored matrices: none, int8 (a scale for every row), bf16 or fp16.
    Raises: UserError where the directory could not give what the model gives.
    """
    ctranslate2 = import_extra("ctranslate2", "ct2")
    config = model.config
    if quantization not in QUANTIZATIONS:
        raise UserError(
            f"quantization is {quantization!r}, which cannot be exported; write one of {', '.join(QUANTIZATIONS)}"
        )
    sizes = (len(src_pieces) + 1, len(tgt_pieces) + 1)
    if sizes != (config.src_vocab_size, config.tgt_vocab_size):
        raise UserError(
            f"the model has {config.src_vocab_size} and {config.tgt_vocab_size} ids, the vocabularies with padding "
            f"{sizes[0]} and {sizes[1]}, so ids would mean other words; export with the tokenizer it was trained with"
        )
    tgt_table = model.src_embedding if config.tie == "all" else model.tgt_embedding
    if bool(tgt_table.weight[-1].any()):
        raise UserError(
            "the embedding of the padding id is not zero, but CTranslate2 would start every target from zeros, so it "
            "would translate differently; export a model whose last row is zero, or decode with the PyTorch engine"
        )

    specs = ctranslate2.specs
    spec = specs.TransformerSpec.from_config(
        (config.num_encoder_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=config.norm == "pre",
        activation=specs.Activation[ACTIVATIONS[config.activation]],
        ffn_glu=config.activation == "swiglu",
    )
    head = model.head()
    spec.encoder.embeddings[0].weight = _array(model.src_embedding.weight)[:-1]
    spec.decoder.embeddings.weight = _array(tgt_table.weight)[:-1]
    spec.decoder.projection.weight = _array(head.weight_VD)[:-1]
    if head.bias_V is not None:
        spec.decoder.projection.bias = _array(head.bias_V)[:-1]
    spec.decoder.start_from_zero_embedding = True
    for side in (spec.encoder, spec.decoder):
        side.scale_embeddings = True
        side.position_encodings.encodings = _array(model.positions)
    if config.norm == "pre":
        _norm(spec.encoder.layer_norm, model.encoder_norm)
        _norm(spec.decoder.layer_norm, model.decoder_norm)
    for layer, ours in zip(spec.encoder.layer, model.encoder, strict=True):
        _self_attention(layer.self_attention, ours)
        _feed_forward(layer.ffn, ours)
    for layer, ours in zip(spec.decoder.layer, model.decoder, strict=True):
        _self_attention(layer.self_attention, ours)
        _cross_attention(layer.attention, ours)
        _feed_forward(layer.ffn, ours)

    spec.register_source_vocabulary(list(src_pieces))
    spec.register_target_vocabulary(list(tgt_pieces))
    spec.config.eos_token, spec.config.unk_token = tgt_pieces[0], tgt_pieces[1]
    spec.config.decoder_start_token = tgt_pieces[0]  # any: its embedding is not looked at
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = 1e-5
    spec.config.add_attribute("max_positions", config.max_positions)
    spec.validate()
    spec.optimize(quantization=QUANTIZATIONS[quantization])
    out.mkdir(parents=True, exist_ok=True)
    spec.save(str(out))


def _self_attention(spec: Any, layer: Any) -> None:
    _linear(spec.linear[0], layer.self_attention.qkv_proj)
    _linear(spec.linear[1], layer.self_attention.out_proj)
    _around(spec, layer.around_self)


def _cross_attention(spec: Any, layer: Any) -> None:
    _linear(spec.linear[0], layer.cross_attention.q_proj)
    _linear(spec.linear[1], layer.cross_attention.kv_proj)
    _linear(spec.linear[2], layer.cross_attention.out_proj)
    _around(spec, layer.around_cross)


def _feed_forward(spec: Any, layer: Any) -> None:
    network: FeedForward = layer.feed_forward
    if network.activation == "swiglu":
        gate, up = ((_array(x[0]), _array(x[1])) for x in zip(*(p.chunk(2) for p in _parts(network.fc1)), strict=True))
        spec.linear_0.weight, spec.linear_0.bias = gate
        spec.linear_0_noact.weight, spec.linear_0_noact.bias = up
    else:
        _linear(spec.linear_0, network.fc1)
    _linear(spec.linear_1, network.fc2)
    _around(spec, layer.around_ff)


def _around(spec: Any, residual: Residual) -> None:
    """The norm belongs to the sub-layer, whether it stands before or behind it."""
    _norm(spec.layer_norm, residual.norm)


def _norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _linear(spec: Any, linear: nn.Linear) -> None:
    spec.weight, spec.bias = (_array(part) for part in _parts(linear))


def _parts(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight, linear.bias


def _array(tensor: Tensor) -> Any:
    """Its own contiguous fp32 copy: the specification changes arrays in place."""
    return tensor.detach().float().cpu().numpy().copy()
