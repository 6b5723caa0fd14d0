"""What teacher=huggingface can and cannot do: it makes labels, and nothing of it is compared or copied.

Called by contradictions.py; torch-free like it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from kdlab import targets
from kdlab.teacher_checks import config_of, hub_or_folder, kd_terms

# Settings of a teacher that not all read: by whom.
READ_BY = {
    "revision": ("marian", "huggingface"),
    "src_code": ("huggingface",),
    "tgt_code": ("huggingface",),
    "prefix": ("huggingface",),
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "*.model", "*.spm", "vocab.txt")


def unread(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Settings that are set in vain."""
    for name, sources in READ_BY.items():
        value = cfg.teacher.get(name)
        if value is not None and cfg.teacher.source not in sources:
            yield (
                f"teacher.{name}={value} has no effect: only teacher={' or teacher='.join(sources)} reads it; leave it "
                "out, or choose that"
            )


def place(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Whether there is a model that may be opened, and something to open it with."""
    if cfg.teacher.source != "huggingface":
        return
    if importlib.util.find_spec("transformers") is None:
        yield (
            "teacher=huggingface needs a package that is not installed; write pip install 'kdlab[hf]', or for a Marian "
            "model choose teacher=marian, which needs none"
        )
    yield from hub_or_folder(cfg)
    codes = {name: cfg.teacher.get(name) for name in ("src_code", "tgt_code")}
    if sum(code is not None for code in codes.values()) == 1:
        told = ", ".join(f"teacher.{name}={'null' if code is None else code}" for name, code in codes.items())
        yield f"{told}, but a model of many languages is told both, and one of a pair none; write both or none"
    folder = Path(cfg.teacher.path or "")
    if cfg.teacher.path is None or not folder.is_dir():
        return
    if (config_of(cfg.teacher.path) or {}).get("model_type") is None:
        yield (
            f"teacher.path={folder} has no config.json with a model_type, so it is no Hugging Face model; write the "
            "folder of one, as save_pretrained writes it, or choose teacher=folder for a kdlab model"
        )
        return
    if not any(folder.glob("*.safetensors")):
        yield (
            f"teacher.path={folder} has no weights in safetensors, and other files of weights (such as "
            "pytorch_model.bin) may run code when they are opened, which kdlab never does; where you trust them write "
            "AutoModelForSeq2SeqLM.from_pretrained(...).save_pretrained(<folder>)"
        )
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER):
        yield (
            f"teacher.path={folder} has no file of a tokenizer, so no text can be read; put those of the model there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(<folder>)"
        )


def only_labels(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """What needs a teacher of our kind."""
    if cfg.teacher.source != "huggingface":
        return
    if terms := [name for name, _ in kd_terms(cfg)]:
        yield (
            f"teacher=huggingface makes labels alone, its tokens are its own, but objective="
            f"{names.get('objective', 'this one')} has a kd term ({', '.join(terms)}), which compares token by token; "
            "choose recipe=seq_kd objective=seq_kd, or for a Marian model teacher=marian data.tokenizer.path=teacher"
        )
    target = str(cfg.init._target_)
    if targets.signature(target).takes("teacher"):
        yield (
            f"init={names.get('init', target)} starts the student from the teacher's layers, but those of "
            "teacher=huggingface are not ours; choose init=random, or for a Marian model teacher=marian"
        )


def decoding(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """What its search does not know."""
    if cfg.teacher.source != "huggingface":
        return
    if cfg.label_decode.get("engine", "pytorch") != "pytorch":
        yield (
            f"label_decode.engine={cfg.label_decode.engine} with teacher=huggingface, but only models of ours are "
            "exported; leave it out, or for a Marian model choose teacher=marian"
        )
    if cfg.label_decode.get("ensemble"):
        yield (
            "label_decode.ensemble names further models, but the mean with teacher=huggingface is of other tokens; "
            "leave it out, or for a Marian model choose teacher=marian"
        )
    for group in ("decode", "label_decode"):
        if cfg[group].precision == "int8":
            yield (
                f"{group}.precision=int8 with teacher=huggingface, but int8 layers are those of our models; write "
                f"{group}.precision=bf16"
            )
