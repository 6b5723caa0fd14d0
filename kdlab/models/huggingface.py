"""Hugging Face's MarianMTModel as our transformer, exactly: the same logits from the same ids.

Read from config.json and model.safetensors alone; nothing is unpickled, and `transformers` is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlab import files
from kdlab.errors import UserError
from kdlab.models.transformer import Transformer, TransformerConfig, sinusoids

WEIGHTS = "model.safetensors"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu"}  # theirs: ours
SHARED, PROJECTION = "model.shared.weight", "lm_head.weight"
ENCODER, DECODER = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
# Modules of a layer: ours, and theirs one above the other.
ENCODER_LAYER = {
    "self_attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.out_proj": ("self_attn.out_proj",),
    "around_self.norm": ("self_attn_layer_norm",),
    "feed_forward.fc1": ("fc1",),
    "feed_forward.fc2": ("fc2",),
    "around_ff.norm": ("final_layer_norm",),
}
DECODER_LAYER = {
    **ENCODER_LAYER,
    "cross_attention.q_proj": ("encoder_attn.q_proj",),
    "cross_attention.kv_proj": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attention.out_proj": ("encoder_attn.out_proj",),
    "around_cross.norm": ("encoder_attn_layer_norm",),
}


def read_marian(folder: Path, rows: Sequence[int]) -> Transformer:
    """The model in a folder, on the CPU, in fp32 and in eval mode.

    Args:
        rows: for each of our ids the row of its tables. Rows that are not named (tables are often padded to a round
            size) are left out, so the softmax is over the tokenizer's pieces alone. Our last id is padding and starts a
            target; it takes the row of the model's own start token, which in Marian is padding too.

    Raises: UserError where the model has something that ours cannot represent.
    """
    path = folder / "config.json"
    try:
        config = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}), so no model can be built; {_HINT}") from None
    if not isinstance(config, dict) or config.get("model_type") != "marian":
        found = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(f"{path} has model_type {found!r}, but only 'marian' can be converted; {_HINT}")
    weights = _weights(folder)

    def take(name: str) -> Tensor:
        if name not in weights:
            raise UserError(f"{folder / WEIGHTS} lacks {name}, which MarianMTModel has, so it is not whole; {_HINT}")
        return weights.pop(name)

    rows = [*rows[:-1], config.get("decoder_start_token_id", rows[-1])]
    tables = _tables(config, weights)
    num_rows = min(len(table) for table in tables)
    if max(rows) >= num_rows:
        raise UserError(
            f"{folder} has ids up to {max(rows)} in vocab.json or config.json, but tables of {num_rows} rows, so model "
            f"and tokenizer do not belong together; {_HINT}"
        )
    src, tgt, out = (table[torch.tensor(rows)] for table in tables)
    if not config.get("scale_embedding", False):  # ours always scales, by sqrt(D)
        src, tgt = src / src.shape[1] ** 0.5, tgt / tgt.shape[1] ** 0.5
    bias = weights.pop("final_logits_bias", torch.zeros(1, num_rows)).flatten()[torch.tensor(rows)]
    tie = "none" if not torch.equal(tgt, out) else "all" if torch.equal(src, tgt) else "decoder_softmax"
    ours: dict[str, Tensor] = {"src_embedding.weight": src}
    if tie != "all":
        ours["tgt_embedding.weight"] = tgt
    if tie == "none":
        ours["softmax_weight"] = out
    if bool(bias[:-1].any()):  # that of padding is never looked at
        ours["softmax_bias"] = bias
    shape = _architecture(config, path, len(rows), tie, "softmax_bias" in ours)
    for side, num_layers in (("encoder", shape.num_encoder_layers), ("decoder", shape.num_decoder_layers)):
        for layer in range(num_layers):
            ours.update(_layer(take, side, layer))
    for name in POSITIONS:
        stored = weights.pop(name, None)
        if stored is not None and not torch.allclose(stored, sinusoids(*stored.shape), atol=1e-3):  # may be fp16
            raise UserError(f"{folder / WEIGHTS} has other positions than Marian's sinusoids in {name}; {_HINT}")
    if weights:
        raise UserError(
            f"{folder / WEIGHTS} has {', '.join(sorted(weights)[:3])}, which MarianMTModel does not have: ours would "
            f"leave it out and compute something else; {_HINT}"
        )
    with torch.device("meta"):
        model = Transformer(shape)
    try:
        model.load_state_dict(ours, assign=True)
    except RuntimeError as error:
        raise UserError(f"{folder}: its weights are not those that config.json tells ({error}); {_HINT}") from None
    model.reset_positions()
    return model.eval()


def _architecture(config: dict[str, Any], path: Path, vocab_size: int, tie: str, bias: bool) -> TransformerConfig:
    def one(*names: str) -> Any:
        values = {config.get(name) for name in names}
        if len(values) > 1 or None in values:
            told = ", ".join(f"{name}={config.get(name)}" for name in names)
            raise UserError(
                f"{path} has {told}, but both sides of our model have one value, which must be given; {_HINT}"
            )
        return values.pop()

    activation = config.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{path} has activation_function {activation!r}, which our model does not have; choose a Marian model with "
            f"one of {', '.join(ACTIVATIONS)}"
        )
    return TransformerConfig(
        src_vocab_size=vocab_size,
        tgt_vocab_size=vocab_size,
        num_encoder_layers=one("encoder_layers"),
        num_decoder_layers=one("decoder_layers"),
        d_model=one("d_model"),
        d_ff=one("encoder_ffn_dim", "decoder_ffn_dim"),
        num_heads=one("encoder_attention_heads", "decoder_attention_heads"),
        dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.0),
        activation=ACTIVATIONS[activation],
        norm="post",
        tie=tie,
        softmax_bias=bias,
        max_positions=one("max_position_embeddings"),
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS}, and other files of weights (such as pytorch_model.bin) may run code when they "
            "are opened, which kdlab never does; on the hub take the revision of a commit that has one (the pull "
            "request 'Adding safetensors variant' of the model), or write one where you trust the file: "
            "MarianMTModel.from_pretrained(...).save_pretrained(...)"
        )
    try:
        return {name: value.to(torch.float32, copy=True) for name, value in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged or no safetensors file ({error}); {_HINT}") from None


def _tables(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of source and target, and the projection; of tied ones the file holds any one."""
    shared, tied = (config.get(key, True) for key in ("share_encoder_decoder_embeddings", "tie_word_embeddings"))
    if shared and tied:
        src = tgt = out = [SHARED, ENCODER, DECODER, PROJECTION]
    elif tied:
        src, tgt, out = [ENCODER], [DECODER, PROJECTION], [DECODER, PROJECTION]
    else:  # older versions of transformers then still share the embeddings, newer ones do not
        src, tgt, out = [ENCODER, SHARED], [DECODER, SHARED], [PROJECTION]
    found = []
    for names in (src, tgt, out):
        held = [name for name in names if name in weights]
        if not held:
            raise UserError(f"the weights have none of {', '.join(names)}, so words have no embeddings; {_HINT}")
        found.append(weights[held[0]])
    for name in (SHARED, ENCODER, DECODER, PROJECTION):
        weights.pop(name, None)
    return found[0], found[1], found[2]


def _layer(take: Callable[[str], Tensor], side: str, layer: int) -> dict[str, Tensor]:
    modules = ENCODER_LAYER if side == "encoder" else DECODER_LAYER
    return {
        f"{side}.{layer}.{ours}.{kind}": torch.cat(
            [take(f"model.{side}.layers.{layer}.{name}.{kind}") for name in theirs]
        )
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


_HINT = "name the folder of a whole MarianMTModel, as save_pretrained of Hugging Face's transformers writes it"
