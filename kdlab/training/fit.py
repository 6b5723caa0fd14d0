"""Lightning's Trainer, set up so that nothing happens behind our back."""

from __future__ import annotations

import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from kdlab.errors import UserError
from kdlab.training.callbacks import Steps
from kdlab.training.module import StudentModule

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def fit(
    module: StudentModule,
    steps: Steps,
    *,
    max_steps: int,
    precision: str,
    strategy: dict[str, Any],
    loggers: list[Logger],
    callbacks: list[Callback],
    checkpoint: Path,
) -> int:
    """Trains to `max_steps` or an early stop, from `checkpoint` where there is one. Returns the steps done."""
    if checkpoint.exists() and not zipfile.is_zipfile(checkpoint):  # it ends with a table of contents
        raise UserError(
            f"the checkpoint {checkpoint} is cut short, so the training cannot go on from it (it was whole when it got "
            "its name: something has damaged it since); delete it, and the same command begins this training anew"
        )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        **strategy,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=checkpoint.parent,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        # Lightning of its own loaders, which we do not use, of functions of torch that it calls, of an argument of DDP
        # whose successor torch 2.9 does not know, and of srun, which is there wherever SLURM is installed
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used.*")
        resume = {"ckpt_path": str(checkpoint)} if checkpoint.exists() else {}
        try:
            trainer.fit(module, train_dataloaders=steps, weights_only=True, **resume)  # type: ignore[arg-type]
        except SystemExit as stopped:  # Lightning's answer to SIGTERM (without a code) and to Ctrl-C
            raise KeyboardInterrupt from stopped
    return trainer.global_step
