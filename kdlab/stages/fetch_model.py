"""Stage fetch_model: an existing kdlab model folder, checked and copied, so that a plan can stand on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kdlab import files
from kdlab.errors import UserError

VERSION = 1


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Copies the folder `local["path"]`, whose files have the hashes `params["sha256"]` {relative path: 64 hex}.

    Raises: UserError where it is no whole model with its tokenizer, or was changed since the plan was made.
    """
    from kdlab.decoding.translator import open_tokenizer
    from kdlab.models.folder import load_model
    from kdlab.models.transformer import num_parameters

    folder = Path(local["path"])
    model = load_model(folder)
    tokenizer = open_tokenizer(folder)
    for name, digest in params["sha256"].items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        if files.sha256_file(target) != digest:
            raise UserError(
                f"{folder / name} was changed while it was copied, so the teacher is not the one that was planned; "
                "run the command again when nothing writes to that folder"
            )
    return {"parameters": num_parameters(model), "tokenizer": tokenizer.fingerprint}
