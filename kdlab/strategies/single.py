"""One process on one device."""

from __future__ import annotations

from typing import Any


def trainer_arguments(device: str) -> dict[str, Any]:
    """What Lightning's Trainer is given: accelerator, devices, strategy."""
    return {"accelerator": {"cpu": "cpu", "cuda": "gpu"}[device], "devices": 1, "strategy": "auto"}
