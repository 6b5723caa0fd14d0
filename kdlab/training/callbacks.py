"""What watches a training: validation with its snapshots, exact resuming, progress.

Validation and checkpoints hang on Lightning's `on_train_batch_end` in a fixed order (validate, then save): Lightning's
own validation loop and ModelCheckpoint leave it open whether a checkpoint was taken before or after a validation.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import load_file, save_file

from kdlab import runtime
from kdlab.data.batching import StepStream, StreamPosition
from kdlab.strategies import ranks
from kdlab.training.metrics import MetricsCsv
from kdlab.training.module import StudentModule
from kdlab.types import Batch

Log = dict[str, float]


class Validation(Callback):
    """Validates every `every` steps and at the end, and keeps the weights of the best `average` validations.

    Args:
        translate: scores the student by translation, e.g. {"bleu": 31.2}; None leaves it out.
        select: metric that decides (`bleu`: higher is better; `nll`: lower).
        patience: stop after this many validations without a better one; None never stops.
    """

    def __init__(
        self,
        folder: Path,
        batches: Callable[[], Any],
        translate: Callable[[torch.nn.Module], Log] | None,
        *,
        every: int,
        select: str,
        average: int,
        patience: int | None,
    ):
        self._folder = folder
        self._batches = batches
        self._translate = translate
        self._every = every
        self._select = select
        self._average = average
        self._patience = patience
        self.history: list[tuple[int, float]] = []  # (step, score: higher is better)
        self.seconds = 0.0  # spent here, which is no time of training
        folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validates when it is time."""
        assert isinstance(pl_module, StudentModule)
        step = trainer.global_step
        if step % self._every and step != trainer.max_steps:
            return
        began = time.perf_counter()
        module = pl_module.whole()
        found = module.validate(self._batches())
        if self._translate is not None:
            module.student.eval()
            found |= self._translate(module.student)
            module.student.train()
        for logger in trainer.loggers:
            logger.log_metrics({f"valid/{name}": value for name, value in found.items()}, step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if "/" not in name)
        runtime.say(f"step {step}: validation {shown}")
        self._keep(step, found[self._select] * (-1 if self._select == "nll" else 1), module.student)
        self.seconds += time.perf_counter() - began
        if self._is_over():
            runtime.say(f"step {step}: no better validation for {self._patience} times; stopping here")
            trainer.should_stop = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that was killed after its early stop must not go on."""
        if self._is_over():
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Scores so far; the weights lie beside the checkpoint."""
        return {"history": [list(entry) for entry in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the scores."""
        self.history = [(int(step), float(score)) for step, score in state_dict["history"]]

    def chosen(self) -> list[int]:
        """Steps of the best validations, best first; an earlier step wins a tie."""
        return [step for step, _ in sorted(self.history, key=lambda entry: (-entry[1], entry[0]))[: self._average]]

    def averaged(self) -> dict[str, torch.Tensor]:
        """Mean of the weights of the chosen validations, in fp64, back in their own type."""
        states = [load_file(self._file(step)) for step in self.chosen()]
        return {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            for name, value in states[0].items()
        }

    def _is_over(self) -> bool:
        scores = [score for _, score in self.history]
        return (
            bool(scores)
            and self._patience is not None
            and len(scores) - 1 - scores.index(max(scores)) >= self._patience
        )

    def drop_unchosen(self) -> None:
        """Removes snapshots that are not among the best; only after a checkpoint with this history is on disk."""
        if ranks.rank():
            return
        chosen = {self._file(step) for step in self.chosen()}
        for path in self._folder.glob("*.safetensors"):
            if path not in chosen:
                path.unlink()

    def _keep(self, step: int, score: float, student: torch.nn.Module) -> None:
        self.history.append((step, score))
        if step in self.chosen() and not ranks.rank():
            temporary = self._file(step).with_suffix(".tmp")
            parameters = {name: value.detach().cpu().contiguous() for name, value in student.named_parameters()}
            save_file(parameters, temporary)
            _replace(temporary, self._file(step))

    def _file(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}.safetensors"


class Steps:
    """The loader that Lightning sees: a stream of optimizer steps that begins where a resumed run stood.

    A thread makes the tensors of one step, or the plan of an epoch, while another step is trained on.
    """

    def __init__(self, stream: StepStream):
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[StreamPosition, list[Batch]]]:
        steps = iter(self.stream)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="steps") as worker:
            coming = worker.submit(next, steps)
            while True:  # the stream has no end
                step = coming.result()
                coming = worker.submit(next, steps)
                yield step


class Resume(Callback):
    """Saves all that continues a run exactly: weights, optimizer, schedule, RNG of every rank, position in the data.

    The checkpoint appears whole or not at all, and holds tensors and plain values only. It is one file with whole
    tensors, whatever the strategy, so that any other strategy and number of ranks goes on from it with the same steps.
    SIGTERM and SIGUSR1 ask for one after the step under way, and then for the end. Stands behind the callbacks that
    log, for a step that a checkpoint counts as done must be in the log.
    """

    def __init__(self, path: Path, steps: Steps, metrics: MetricsCsv, validation: Validation, *, every: int):
        self._path = path
        self._steps = steps
        self._metrics = metrics
        self._validation = validation
        self._every = every
        self._position = steps.stream.start
        self._rng: list[dict[str, torch.Tensor]] = []  # of each rank
        self._on_gpu = False
        self._told_to_stop = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Has checkpoints written where they belong; asks nothing of a GPU that does not train."""
        trainer.strategy.checkpoint_io = _Directly()
        self._on_gpu = trainer.strategy.root_device.type == "cuda"

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Puts the random state back after everything else has been built; ranks differ in it."""
        mine = self._rng[ranks.rank()] if ranks.rank() < len(self._rng) else {}
        if "cpu" in mine:
            torch.set_rng_state(mine["cpu"])
        elif ranks.rank():
            torch.manual_seed(hash((torch.initial_seed(), ranks.rank(), trainer.global_step)) % 2**63)
        if "cuda" in mine and self._on_gpu:
            torch.cuda.set_rng_state(mine["cuda"])
        if not ranks.rank():
            self._metrics.forget_after(trainer.global_step)
        if threading.current_thread() is threading.main_thread():
            # In the place of Lightning's, which loses the step, and with several ranks talks to them from the handler.
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._stop)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time."""
        self._position = batch[0]  # of the batch just trained on: Lightning has already fetched the next one
        stops = ranks.summed({"told": self._told_to_stop})["told"] > 0  # a rank alone would leave the others waiting
        is_last = trainer.global_step == trainer.max_steps or trainer.should_stop
        if trainer.global_step % self._every == 0 or is_last or stops:
            temporary = self._path.with_suffix(".tmp")
            trainer.save_checkpoint(temporary)  # by all ranks together; the first writes
            if not ranks.rank():
                _replace(temporary, self._path)
            self._validation.drop_unchosen()
        if stops:  # after the last step too: what follows a training may take hours
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._told_to_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Random state and position."""
        rng = {"cpu": torch.get_rng_state()}
        if self._on_gpu:
            rng["cuda"] = torch.cuda.get_rng_state()
        return {"rng": ranks.of_all(rng), "position": [self._position.epoch, self._position.step]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the stream to where it was; Lightning opens it after this."""
        self._rng = state_dict["rng"]
        self._position = StreamPosition(*state_dict["position"])
        self._steps.stream = replace(self._steps.stream, start=self._position)


class _Directly(TorchCheckpointIO):
    """Lightning's own way leads through two more copies in memory and a file below $TMPDIR, which may be too small."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)  # Resume puts it in its place once it is whole


def _replace(temporary: Path, path: Path) -> None:
    """Puts a written file in its place, its content on disk first."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Progress(Callback):
    """A bar with loss and target tokens a second of training; the numbers go to the loggers every `every` steps."""

    def __init__(self, what: str, validation: Validation | None = None, *, every: int):
        self._what = what
        self._validation = validation
        self._every = every
        self._bar: Any = None
        self._tokens = 0
        self._since = 0.0
        self._rate = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the rate of the step; at its end there is that of the next one."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Opens the bar where the run stands."""
        self._bar = runtime.bar(what=self._what, total=trainer.max_steps, unit="steps", initial=trainer.global_step)
        self._since = self._trained_s()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; logs when it is time."""
        microbatches: list[Batch] = batch[1]
        self._tokens += sum(b.num_units("all", "tgt_token") for b in microbatches)
        self._bar.update()
        if trainer.global_step % self._every:
            return
        tokens = ranks.summed({"tokens": self._tokens})["tokens"]
        seconds = self._trained_s() - self._since
        values = {f"train/{name}": float(value) for name, value in outputs.items()}
        values["train/lr"] = self._rate
        values["train/tokens_per_s"] = tokens / max(seconds, 1e-9)
        values["train/peak_memory_mib"] = runtime.peak_memory_mib()
        shown = f"loss {values['train/loss']:.3f}, {values['train/tokens_per_s']:,.0f} tokens/s"
        self._bar.set_postfix_str(shown, refresh=False)  # the bar itself decides when to print
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
        self._tokens, self._since = 0, self._trained_s()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Closes the bar."""
        self._bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Closes the bar before an error message."""
        if self._bar is not None:
            self._bar.close()

    def _trained_s(self) -> float:
        """A clock that stands still during validations."""
        return time.perf_counter() - (self._validation.seconds if self._validation else 0.0)
