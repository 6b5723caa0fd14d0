"""Trainings that stop and go on: exactly, under the same strategy; with the same steps, under another one.

Runs inside the two processes of tests/parity.py, whose model, rows and objectives it takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kdlab.data.batching import evaluation_batches
from kdlab.strategies import ranks
from kdlab.strategies.single import Single
from kdlab.strategies.strategy import Strategy
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.callbacks import Resume, Steps, Validation
from kdlab.training.fit import fit
from kdlab.training.metrics import MetricsCsv
from kdlab.training.module import StudentModule
from tests import parity

LINK, LINKS = 2, ("ddp", "zero1", "zero2", "zero3")  # steps of each link of the chain; single is at both ends


@dataclass(frozen=True)
class Part:
    """What one process of training saw."""

    log: list[Any]  # of every step: where the stream stood, then the numbers
    weights: dict[str, torch.Tensor]
    scores: list[Any]  # of validations, from the beginning


class Seen(parity.Recorder):
    """Also where the stream stood."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.told[-1] = {"epoch": batch[0].epoch, "step": batch[0].step, **self.told[-1]}


def train(strategy: Strategy, folder: Path, *, until: int, dropout: float = 0.0) -> Part:
    """Goes on from the checkpoint in the folder, where there is one."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"max_steps": until, "chunk_size": 50, "strategy": strategy}
    student, teacher = parity.model(1, dropout=dropout), FrozenTeacher(parity.model(2, width=24))
    module = StudentModule(student, parity.OBJECTIVES["triple"], teacher, parity.ADAM, **settings)
    share = {"rank": ranks.rank(), "num_ranks": ranks.num_ranks()}
    loader, seen = Steps(parity.stream(False, **share)), Seen()
    metrics = MetricsCsv(folder / "metrics.csv")
    validation = Validation(
        folder / "snapshots",
        lambda: evaluation_batches(parity.Rows.make(7, 20), microbatch_tokens=150, **parity.PADS, **share),
        None,
        every=2,
        select="nll",
        average=1,
        patience=None,
    )
    resume = Resume(folder / "last.ckpt", loader, metrics, validation, every=3)
    fit(
        module,
        loader,
        max_steps=until,
        precision="fp32",
        strategy=strategy.trainer_arguments("cpu"),
        loggers=[metrics],
        callbacks=[seen, validation, resume],
        checkpoint=folder / "last.ckpt",
    )
    weights = {name: value.detach().clone() for name, value in module.whole().named_parameters()}
    return Part(seen.told, weights, validation.history)


def exactness(strategy: Strategy) -> dict[str, bool]:
    """What is bit for bit the same in a run that stopped after three of six steps, dropout on."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(ranks.from_first(temporary)) / name for name in ("whole", "parts")]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        dropped = {"dropout": 0.2}
        whole = train(strategy, folders[0], until=6, **dropped)
        train(strategy, folders[1], until=3, **dropped)
        rest = train(strategy, folders[1], until=6, **dropped)
        ours = torch.get_rng_state()
        found = {
            "log": rest.log == whole.log[3:],
            "weights": all(torch.equal(rest.weights[name], value) for name, value in whole.weights.items()),
            "validations": [score for score in rest.scores if score[0] != 3] == whole.scores,  # 3 was an end
            "ranks drop differently": ranks.num_ranks() == 1 or not torch.equal(*ranks.of_all(ours)),
        }
        dist.barrier()  # before the folder goes
        return found


class Chain:
    """A run that each strategy goes on with for two steps, from one process to one process."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self.log: list[Any] = []
        self.saved: dict[str, dict[str, Any]] = {}

    def add(self, title: str, strategy: Strategy) -> Part:
        """The next two steps."""
        folder = Path(ranks.from_first(str(self._folder)))
        part = train(strategy, folder, until=len(self.log) + LINK)
        self.log += part.log
        path = folder / "last.ckpt"
        saved = torch.load(path, weights_only=True)  # tensors and plain values, or it raises
        optimizer = saved["optimizer_states"][0]
        tensors = [*saved["state_dict"].values(), *(v for s in optimizer["state"].values() for v in s.values())]
        self.saved[title] = {
            "weights": {name: list(value.shape) for name, value in saved["state_dict"].items()},
            "moments": {i: sorted(state) for i, state in optimizer["state"].items()},
            "bytes": path.stat().st_size,
            "bytes of student and optimizer": sum(value.numel() * value.element_size() for value in tensors),
        }
        return part


def before(chain: Chain) -> Part:
    """In one process: the run as it should be, and the chain's beginning."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Single(), Path(folder), until=LINK * (len(LINKS) + 2))
    chain.add("single", Single())
    return whole


def after(chain: Chain, whole: Part) -> dict[str, Any]:
    """In one process again: the chain's end, and how far it went astray."""
    last = chain.add("single again", Single())
    where = ("epoch", "step")
    names = [name for name in whole.log[0] if name not in where]
    distance: Callable[[Any, Any], float] = lambda a, b: max(abs(a[name] - b[name]) for name in names)  # noqa: E731
    return {
        "same steps": [[row[key] for key in where] for row in chain.log]
        == [[row[key] for key in where] for row in whole.log],
        "numbers": max(distance(ours, theirs) for ours, theirs in zip(chain.log, whole.log, strict=True)),
        "weights": parity.Told([], last.weights, torch.zeros(1)).near(parity.Told([], whole.weights, torch.zeros(1))),
        "validations": max(abs(a[1] - b[1]) for a, b in zip(last.scores, whole.scores, strict=True)),
        "saved": chain.saved,
    }
