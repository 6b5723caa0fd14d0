"""Stage convert_model: a Hugging Face Marian model, from a folder or the hub, becomes a kdlab model folder.

Its tokenizer comes along, so that a corpus can adopt its vocabulary. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.errors import UserError

VERSION = 1
FILES = ("config.json", "model.safetensors", "source.spm", "target.spm", "tokenizer_config.json", "vocab.json")


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Converts the model of the hub `params` {hub, revision}, or that in the folder `local["path"]`.

    Args:
        params: of a folder {sha256: {name: 64 hex}}.
    Raises: UserError where it is no Marian model that ours can represent, or was changed since the plan was made.
    """
    from kdlab.data.marian import read_marian_tokenizer
    from kdlab.models.folder import save_model
    from kdlab.models.hub import downloaded
    from kdlab.models.huggingface import read_marian
    from kdlab.models.transformer import num_parameters

    folder = downloaded(params["hub"], params["revision"], FILES) if "hub" in params else Path(local["path"])
    tokenizer, rows = read_marian_tokenizer(folder)
    model = read_marian(folder, rows)
    for name, digest in params.get("sha256", {}).items():
        if files.sha256_file(folder / name) != digest:
            raise UserError(
                f"{folder / name} was changed while it was read, so the teacher is not the one that was planned; run "
                "the command again when nothing writes to that folder"
            )
    known = {"from": f"{params['hub']} at {params['revision']}"} if "hub" in params else {}
    save_model(out, model, card={"converted": "Hugging Face Marian", **known, "tokenizer": tokenizer.fingerprint})
    tokenizer.save(out / "tokenizer")
    return {"parameters": num_parameters(model), "tokenizer": tokenizer.fingerprint}
