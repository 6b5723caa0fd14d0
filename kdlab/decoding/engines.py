"""Engines by their settings: from model folders and the configuration of label decoding to what decodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kdlab.decoding.beam import BeamConfig, Hypothesis
from kdlab.decoding.ctranslate2 import CTranslate2Model
from kdlab.decoding.engine import Engine
from kdlab.decoding.huggingface import CARD, HuggingFaceEngine
from kdlab.decoding.pytorch import pytorch_engine
from kdlab.decoding.sampling import Sampling
from kdlab.decoding.text import Batch, TextEngine
from kdlab.decoding.translate import for_decoding
from kdlab.decoding.translator import open_tokenizer
from kdlab.deploy.ctranslate2 import export
from kdlab.errors import UserError
from kdlab.models.folder import load_model
from kdlab.models.transformer import num_parameters

STORED = {"fp32": "none", "bf16": "bf16", "fp16": "fp16", "int8": "int8"}  # precision: quantization of the export


def batch_width(decode: dict[str, Any]) -> int:
    """Hypotheses side by side of every sentence, for translate.plan_batches."""
    return int(decode.get("n_best", 1) if decode.get("sampling") else decode["beam_size"])


def open_engine(folders: Sequence[Path], decode: dict[str, Any], *, device: str, threads: int, scratch: Path) -> Engine:
    """The engine that `decode` asks for: PyTorch, or CTranslate2 with engine: ctranslate2.

    Args:
        folders: of the teacher, then of the further members of an ensemble.
        decode: params of label decoding: beam_size, length_penalty, max_length_ratio, max_length_extra, precision;
            where it is more than one hypothesis of a search by PyTorch, also n_best, sampling (then without beam_size)
            and engine. batch_tokens is the caller's.
        threads: of CTranslate2, which searches as many batches side by side; torch's are the caller's.
        scratch: a folder of this process alone; an exported model is put there.
    Raises: UserError where a folder is no whole model, or the models do not go together.
    """
    config = BeamConfig(
        batch_width(decode),
        n_best=decode.get("n_best", 1),
        **{name: decode[name] for name in ("length_penalty", "max_length_ratio", "max_length_extra")},
    )
    sampling = Sampling(**decode["sampling"]) if decode.get("sampling") else None
    if any((folder / CARD).is_file() for folder in folders):
        if len(folders) > 1 or decode.get("engine", "pytorch") != "pytorch":
            raise UserError(
                "a Hugging Face teacher in an ensemble or in CTranslate2, but only models of ours can be combined or "
                "exported; use it alone with engine=pytorch, or for a Marian model choose teacher=marian"
            )
        precision = decode["precision"]
        return HuggingFaceEngine.open(folders[0], config, precision=precision, device=device, sampling=sampling)
    models, tokenizers = [load_model(folder) for folder in folders], [open_tokenizer(folder) for folder in folders]
    for folder, tokenizer in zip(folders[1:], tokenizers[1:], strict=True):
        if tokenizer.fingerprint != tokenizers[0].fingerprint:
            raise UserError(
                f"{folder} has another vocabulary ({tokenizer.fingerprint}) than {folders[0]} "
                f"({tokenizers[0].fingerprint}), but an ensemble takes the mean of probabilities of the same tokens; "
                "name models that were trained with the same tokenizer"
            )
    size = sum(map(num_parameters, models))
    if decode.get("engine", "pytorch") == "pytorch":
        ready = [for_decoding(model, precision=decode["precision"], device=device) for model in models]
        return pytorch_engine(ready, tokenizers[0], config, size, sampling)
    if len(models) > 1:
        raise UserError("engine=ctranslate2 with an ensemble, but it asks one model alone; write engine=pytorch")
    if sampling is not None:
        raise UserError(
            "engine=ctranslate2 with sampling, but what it draws depends on threads and neighbours, so that no run "
            "could be repeated; write engine=pytorch"
        )

    folder, tokenizer = scratch / "ctranslate2", tokenizers[0]
    export(models[0], tokenizer.src_pieces, tokenizer.tgt_pieces, folder, quantization=STORED[decode["precision"]])
    exported = CTranslate2Model.open(folder, device=device, threads=threads)

    def search(batches: Iterable[Batch]) -> Iterator[list[list[Hypothesis]]]:
        return exported.search((src_ids for _, src_ids in batches), config)

    return TextEngine(tokenizer, search, exported.max_positions, size)
