"""The parts of a Hugging Face model folder: tokenizer, weights, what its targets begin with and never say.

No code that lies in a folder is run, nothing is unpickled and nothing is fetched.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlab.errors import UserError, did_you_mean


def read_tokenizer(transformers: Any, folder: Path) -> Any:
    """Its tokenizer. Raises: UserError."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*sacremoses")  # for training's normalisation, not for ids
            found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        names = {*found.vocab_files_names.values(), "tokenizer.json"} - {"tokenizer_config.json"}
        if found.vocab_files_names and not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"none of {', '.join(sorted(names))}")  # some then open with an empty vocabulary
    except Exception as error:  # of many kinds, by file
        raise UserError(
            f"the tokenizer of the Hugging Face model in {folder} cannot be read ({type(error).__name__}: {error}), so "
            "nothing can be translated with it; name a folder that has its tokenizer's files too, as save_pretrained "
            "of model and tokenizer writes it"
        ) from error
    return found


def read_model(transformers: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Its model, from safetensors alone. Raises: UserError."""
    try:
        model, loading = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            f"the model in {folder} cannot be read as a Hugging Face sequence-to-sequence model in safetensors "
            f"({type(error).__name__}: {error}), so there is no teacher; name the folder of a whole one, as "
            "save_pretrained writes it"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"the weights in {folder} lack {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}, which "
            "transformers would fill with random numbers; name the folder of a whole model"
        )
    return model


def prompt_ids(tokenizer: Any, card: Mapping[str, str | None], start: int, first: int | None) -> list[int]:
    """What every target begins with; sets the language of sources where the model has many.

    Args:
        first: the token that the model's own settings put behind the start.
    Raises: UserError where codes are missing, unknown, or set in vain.
    """
    src, tgt = card["src_code"], card["tgt_code"]
    if not isinstance(getattr(type(tokenizer), "src_lang", None), property):  # models of many languages have that
        if src is not None or tgt is not None:
            raise UserError(
                f"teacher.src_code={src} and teacher.tgt_code={tgt} mean nothing to {type(tokenizer).__name__}, which "
                "has no languages to choose from; leave them out (what T5, or a Marian model of several targets, reads "
                "is a prefix, e.g. teacher.prefix='>>fra<< ')"
            )
        return [start] if first is None else [start, first]
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known is None:  # NLLB: they are special tokens
        plain = tokenizer.special_tokens_map.values()
        codes = [token for token in tokenizer.all_special_tokens if token not in plain]
        known = dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))
    for name, code in (("src_code", src), ("tgt_code", tgt)):
        if code not in known:
            hint = did_you_mean(code or "", known) or f"; write one of {', '.join(sorted(known)[:8])}, ..."
            raise UserError(
                f"teacher.{name}={'null' if code is None else code} is no language of this teacher, so it would "
                f"translate something else{hint}"
            )
    tokenizer.src_lang = src
    # mBART begins with the language itself, all others have it behind a start token.
    return [known[tgt]] if start in known.values() else [start, known[tgt]]


def forbidden_ids(theirs: Any, tokenizer: Any, num_rows: int) -> Tensor:
    """Tokens that are never said: padding, what the model's own settings forbid, rows that stand for no token."""
    forbidden_V = torch.zeros(num_rows, dtype=torch.bool)
    forbidden_V[max(tokenizer.get_vocab().values()) + 1 :] = True
    forbidden_V[tokenizer.pad_token_id] = True
    for ids in [*(theirs.bad_words_ids or ()), *([token] for token in theirs.suppress_tokens or ())]:
        if len(ids) == 1:
            forbidden_V[ids[0]] = True
    return forbidden_V
