"""What every test runs under: shapes checked at run time, one thread, caches of its own, no network."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from tests.traps import pytest_collection_modifyitems, pytest_terminal_summary

__all__ = ["pytest_collection_modifyitems", "pytest_terminal_summary"]  # pytest finds hooks here: the table of traps

# Before torch is imported anywhere; processes that a test starts inherit it.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

# A test must neither read nor leave anything in the user's caches.
CACHES = Path(tempfile.mkdtemp(prefix="kdlab-tests-"))
atexit.register(shutil.rmtree, CACHES, ignore_errors=True)
WANDB = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
for variable in ("HF_HOME", "XDG_CACHE_HOME", "SACREBLEU", *WANDB):
    os.environ[variable] = str(CACHES / variable.lower())
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="offline")

# The shapes in signatures are checked when the functions are called; import hooks come before the imports.
install_import_hook(["kdlab.types", "kdlab.objectives", "kdlab.models", "kdlab.decoding"], "beartype.beartype")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to another machine fails the test that opens it."""
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test wanted to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
