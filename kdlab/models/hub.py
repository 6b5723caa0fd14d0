"""Files of a model on the Hugging Face hub, at one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdlab.errors import UserError


def downloaded(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """The folder with those of its files, none from folders below. Raises: UserError where it cannot be fetched."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # of a dozen kinds, for a wrong name and without a network
        raise UserError(
            f"teacher.path={name} at teacher.revision={revision} cannot be fetched from the hub "
            f"({type(error).__name__}: {error}), so there is no teacher; check name and revision, or fetch "
            f"{', '.join(patterns)} yourself and write teacher.path=<their folder>"
        ) from error
