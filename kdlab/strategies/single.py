"""One process on one device."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.environments import LightningEnvironment


def trainer_arguments(device: str) -> dict[str, Any]:
    """What Lightning's Trainer is given: accelerator, devices, strategy, plugins.

    The environment is named because Lightning otherwise finds SLURM by itself: then it requeues the job on its own, and
    loads whatever `hpc_ckpt_*.ckpt` lies in the folder, also that of another stage.
    """
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
    return {"accelerator": accelerator, "devices": 1, "strategy": "auto", "plugins": [LightningEnvironment()]}
