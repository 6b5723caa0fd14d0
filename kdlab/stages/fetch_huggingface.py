"""Stage fetch_huggingface: a Hugging Face sequence-to-sequence model as it is, from a folder or the hub, to label with.

Its files are copied and huggingface.json is put beside them: languages and prefix. Nothing is unpickled, and no code
that comes with a model is run.
"""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.errors import UserError

VERSION = 1
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt")
NOT_OF_THE_MODEL = ("manifest.json", "huggingface.json")  # of a finished step


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that are read, by name."""
    found = [place for place in folder.iterdir() if place.is_file() and place.name not in NOT_OF_THE_MODEL]
    return sorted(place for place in found if any(fnmatch(place.name, pattern) for pattern in PATTERNS))


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Copies the model of the hub `params` {hub, revision}, or that in the folder `local["path"]`, and opens it once.

    Args:
        params: of a folder {sha256: {name: 64 hex}}; of both src_code, tgt_code, prefix (None where there is none).
    Raises: UserError where it is no whole model with its tokenizer, or was changed since the plan was made.
    """
    from kdlab.decoding.beam import BeamConfig
    from kdlab.decoding.huggingface import CARD, HuggingFaceEngine
    from kdlab.models.hub import downloaded

    at_hub = "hub" in params
    folder = downloaded(params["hub"], params["revision"], PATTERNS) if at_hub else Path(local["path"])
    names = [place.name for place in model_files(folder)]
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{params['hub'] if at_hub else folder} has no weights in safetensors, and other files of weights (such as "
            "pytorch_model.bin) may run code when they are opened, which kdlab never does; on the hub take a revision "
            "that has them (the pull request 'Adding safetensors variant' of the model), or write them "
            "where you trust the file: AutoModelForSeq2SeqLM.from_pretrained(...).save_pretrained(...)"
        )
    for name in names if at_hub else params["sha256"]:
        shutil.copyfile(folder / name, out / name)
        if not at_hub and files.sha256_file(out / name) != params["sha256"][name]:
            raise UserError(
                f"{folder / name} was changed while it was copied, so the teacher is not the one that was planned; run "
                "the command again when nothing writes to that folder"
            )
    files.write_json(out / CARD, {name: params[name] for name in ("src_code", "tgt_code", "prefix")})
    engine = HuggingFaceEngine.open(out, BeamConfig(1, 1.0), precision="bf16", device="cpu")  # half the memory
    return {"parameters": engine.num_parameters, "model": type(engine.model).__name__}
