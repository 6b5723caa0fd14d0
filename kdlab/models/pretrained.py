"""A start from a model that was trained before: all of its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from kdlab.errors import UserError
from kdlab.models.folder import load_model
from kdlab.models.transformer import Transformer


@torch.no_grad()
def pretrained(model: Transformer, seed: int, folder: Path) -> None:
    """Copies the weights of the model in a folder, of the same shape, into a model; nothing is left to the seed.

    Source: Turc et al. 2019 (Well-Read Students Learn Better): pre-training a student before it is distilled.
    Raises: UserError where the two differ in shape.
    """
    theirs = load_model(folder)
    ours, shapes = model.config.to_dict(), theirs.config.to_dict()
    if differ := [name for name, value in ours.items() if shapes[name] != value]:
        told = ", ".join(f"{name} {shapes[name]} and not {ours[name]}" for name in differ)
        raise UserError(
            f"the model in {folder} has {told}, so its weights do not fit; start from one of the student's own shape"
        )
    model.load_state_dict(theirs.state_dict(), strict=True)
