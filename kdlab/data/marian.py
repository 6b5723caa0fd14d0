"""The vocabulary of a Hugging Face Marian model: vocab.json numbers the pieces of two SentencePiece models.

Its files go into our Tokenizer as they are. Ids stay what they are where `</s>` is 0, `<unk>` 1 and `<pad>` the last,
as in most of these models; else the three are moved there, and the rows of the model with them. Lines are encoded as
MarianTokenizer does it, but a line that spells a special token (such as "</s>") is text like any other, and so is what
looks like a language code that the vocabulary does not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlab.data.tokenizer import PADDING, VOCABULARY, Tokenizer
from kdlab.errors import UserError
from kdlab.files import read_json

SPECIAL = ("</s>", "<unk>", PADDING)


def read_marian_tokenizer(folder: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of a model folder, and for each of its ids the row of the model's tables that stands for it.

    Raises: UserError where a file is missing or is not what Marian writes, or the sides have a vocabulary each.
    """
    vocabulary = _read(folder, VOCABULARY)
    config = _read(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    if config.get("separate_vocabs") or (folder / "target_vocab.json").exists():
        raise UserError(
            f"{folder} has a vocabulary for each side, but only Marian models with one vocab.json can be converted; "
            "choose another model, or make pseudo-labels with this one elsewhere"
        )
    missing = [token for token in SPECIAL if token not in vocabulary]
    ids = list(vocabulary.values())
    if missing or len(set(ids)) < len(ids) or not all(isinstance(index, int) and index >= 0 for index in ids):
        what = f"lacks {', '.join(missing)}" if missing else "does not give every piece an id of its own"
        raise UserError(
            f"{folder / VOCABULARY} {what}, so it is no vocabulary of a Marian model; copy the folder anew from where "
            "it was made"
        )
    eos, unknown, _ = SPECIAL
    pieces = [eos, unknown, *sorted(vocabulary.keys() - set(SPECIAL), key=vocabulary.__getitem__)]
    models = [_bytes(folder / name) for name in ("source.spm", "target.spm")]
    return Tokenizer(models[0], models[1], pieces), [vocabulary[piece] for piece in (*pieces, PADDING)]


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = read_json(folder / name)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / name} cannot be read ({error}), {_HINT}") from None
    if not isinstance(found, dict):
        raise UserError(f"{folder / name} holds no mapping, {_HINT}")
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}), {_HINT}") from None


_HINT = (
    "so the model cannot turn text into ids; name the folder of a Hugging Face Marian model, which has vocab.json, "
    "source.spm and target.spm"
)
