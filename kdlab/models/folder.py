"""A model as a folder that stands alone: config.json, weights.safetensors, card.md; a stage adds tokenizer/.

config.json holds the architecture and the card: whatever the maker wants known, of which kdlab itself reads
`tokenizer`, the fingerprint of the tokenizer that the model was trained with. Nothing is ever unpickled.

A model whose tables were padded with rows at their end (to a size that GPUs like) is read without them: an id is what
the tokenizer says, so of V ids the last, V - 1, is padding, and rows from V on are left out of embeddings and softmax.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdlab import files
from kdlab.errors import UserError
from kdlab.models.transformer import Transformer, TransformerConfig, num_parameters

CONFIG, WEIGHTS, CARD = "config.json", "weights.safetensors", "card.md"
FORMAT = "kdlab-transformer-1"
TABLES = {"src_embedding.weight", "tgt_embedding.weight", "softmax_weight", "softmax_bias"}  # a row for every id


def save_model(folder: Path, model: Transformer, card: dict[str, Any]) -> None:
    """Writes the model and its card (plain JSON values) into `folder`; every file is whole or absent."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(weights, temporary, metadata={"format": FORMAT})
    os.replace(temporary, folder / WEIGHTS)
    card = {"parameters": num_parameters(model), **card}
    files.write_json(folder / CONFIG, {"format": FORMAT, "architecture": model.config.to_dict(), "card": card})
    lines = [f"# A kdlab translation model, {num_parameters(model):,} parameters", ""]
    lines += [f"- {name}: {value}" for name, value in card.items()]
    lines += ["", "Use it: `python -m kdlab.translate model=<this folder>`", ""]
    files.write_text(folder / CARD, "\n".join(lines))


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says: `architecture` and `card`. Raises UserError where the folder is no kdlab model."""
    hint = "write the path of a folder that holds config.json, weights.safetensors and tokenizer/"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the model folder {folder} {what}, so there is nothing to load; {hint}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"the folder {folder} has no {name}, so it is not a kdlab model; {hint}")
    try:
        config = files.read_json(folder / CONFIG)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}), so the model cannot be built; {hint}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise UserError(
            f"{folder / CONFIG} has format {found!r} and not {FORMAT!r}: it was not written by this kdlab; "
            "write the path of a kdlab model folder"
        )
    return config


def load_model(folder: Path) -> Transformer:
    """The model in a folder, on the CPU, in fp32 and in eval mode. Raises UserError where it cannot be what it says."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = TransformerConfig.from_dict(read_config(folder)["architecture"])
    again = "copy the folder anew from where it was made"
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged or no safetensors file ({error}); {again}") from None
    with torch.device("meta"):
        model = Transformer(config)  # as it was saved
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{folder / WEIGHTS} has {name} of shape {found.get(name, 'none')} where {CONFIG} tells "
                f"{expected.get(name, 'none')}, so the two do not belong together; {again}"
            )
    sizes = _vocabulary_sizes(folder, config)
    if sizes != (config.src_vocab_size, config.tgt_vocab_size):
        with torch.device("meta"):
            model = Transformer(replace(config, src_vocab_size=sizes[0], tgt_vocab_size=sizes[1]))
        for name in TABLES & weights.keys():
            weights[name] = weights[name][: sizes[0] if name.startswith("src") else sizes[1]]
    # Copied, because safetensors maps the file: whoever writes to it later must not change the model.
    copied = {name: value.to(torch.float32, copy=True) for name, value in weights.items()}
    model.load_state_dict(copied, assign=True)
    model.reset_positions()
    return model.eval()


def _vocabulary_sizes(folder: Path, config: TransformerConfig) -> tuple[int, int]:
    """Ids of source and target: the model's, or those of the tokenizer beside it where the model has more rows."""
    try:
        card = files.read_json(folder / "tokenizer" / "tokenizer.json")
        sizes = int(card["src_vocab_size"]), int(card["tgt_vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        sizes = config.src_vocab_size, config.tgt_vocab_size  # whoever needs the tokenizer says what is wrong with it
    return min(sizes[0], config.src_vocab_size), min(sizes[1], config.tgt_vocab_size)
