"""Bytes that each strategy really holds and communicates, beside kdlab.budget's `as built`.

`python -m tests.footprint_ranks` prints the table: two gloo processes train a small student under every strategy for
two steps. Held: parameters, gradients and moments on the fullest rank. Sent: whole buffers of every collective of a
step. tests/integration/test_footprint_ranks.py holds them to 5 %.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdlab.data.batching import StreamPosition
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.strategies import footprint, ranks, teacher_footprint
from kdlab.strategies.ddp import DataParallel
from kdlab.strategies.footprint import Layout
from kdlab.strategies.fsdp import FullySharded
from kdlab.strategies.single import Single
from kdlab.strategies.strategy import Strategy
from kdlab.strategies.trainings import REAL_SHARE, HiddenPair, Training
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.fit import fit
from kdlab.training.module import StudentModule
from kdlab.training.optim import Optim
from kdlab.types import Batch, Targets

NUM_RANKS, ROWS, LENGTH = 2, 3, 10
STUDENT = {
    **{"src_vocab_size": 600, "tgt_vocab_size": 600, "num_encoder_layers": 3, "num_decoder_layers": 2},
    **{"d_model": 48, "d_ff": 192, "num_heads": 4, "tie": "decoder_softmax", "softmax_bias": True},
}
TEACHER = STUDENT | {"d_model": 64, "num_encoder_layers": 4}
STRATEGIES: dict[str, tuple[Layout, Strategy]] = {
    "single": (Layout("single"), Single()),
    "ddp": (Layout("ddp"), DataParallel(2)),
    "zero1": (Layout("zero1"), DataParallel(2, shard_optimizer=True)),
    "zero2": (Layout("zero2"), FullySharded(2, reshard_after_forward=False)),
    "zero3": (Layout("zero3"), FullySharded(2, reshard_after_forward=True)),
    "zero3, teacher sharded": (
        Layout("zero3", teacher="sharded"),
        FullySharded(2, reshard_after_forward=True, teacher="sharded"),
    ),
    "fsdp, 2 replicas": (Layout("fsdp", replicas=2), FullySharded(2, reshard_after_forward=True, replicas=2)),
}
KINDS = {
    **{"allreduce_": "all_reduce", "broadcast_": "broadcast", "_allgather_base_": "all_gather"},
    **{"_reduce_scatter_base_": "reduce_scatter", "allgather_": "all_gather", "reduce_scatter_": "reduce_scatter"},
}


class Sent(TorchDispatchMode):
    """Adds up the largest buffer of every collective, the reducer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "c10d" and name in KINDS:
            sides = [sum(map(size, tree_leaves(arg))) for arg in args[:2]]
            self.bytes[KINDS[name]] += max(sides)
        return func(*args, **(kwargs or {}))


def size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the storages on this rank, each once."""
    local = [
        value.to_local() if hasattr(value, "to_local") else value for value in tensors if isinstance(value, Tensor)
    ]
    return sum({x.untyped_storage()._cdata: x.numel() * x.element_size() for x in local}.values())


class Weighed(Optim):
    """Notes the gradients when they are clipped."""

    gradients = 0

    def clip(self, parameters: Any) -> Tensor:
        parameters = list(parameters)
        Weighed.gradients = sum(held([p.grad]) for p in parameters)
        return super().clip(parameters)


class Watch(Callback):
    """Counts what is sent in the last step, and what is held after it."""

    def __init__(self, last: int):
        self._last, self.told = last, Counter[str]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self._last:
            self._sent = Sent()
            self._sent.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx < self._last:
            return
        self._sent.__exit__(None, None, None)
        optimizer = trainer.optimizers[0]
        state = getattr(optimizer, "optim", optimizer).state  # ZeroRedundancyOptimizer has its own inside
        self.told.update(
            parameters=sum(held([p]) for p in pl_module.parameters()),
            gradients=Weighed.gradients,
            optimizer=sum(held(tree_leaves(entry)) for entry in state.values()),
            teacher=sum(held([p]) for p in pl_module._teacher._model.parameters()),
        )
        self.told.update({f"sent {kind}": number for kind, number in self._sent.bytes.items()})


class Equal:
    """Steps of microbatches that are all alike and have no padding."""

    def __init__(self, num_microbatches: int):
        ids, real = torch.randint(2, 599, (ROWS, LENGTH)), torch.ones(ROWS, LENGTH, dtype=torch.bool)
        targets = Targets(torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.bool), ids, ids, real)
        self._step = [Batch(torch.arange(ROWS), ids, real, targets)] * num_microbatches

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield StreamPosition(0, 1), self._step


def model(architecture: dict[str, Any], seed: int) -> Transformer:
    made = Transformer(TransformerConfig(**architecture))
    random_init(made, seed)
    return made


def measured(strategy: Strategy, num_microbatches: int) -> Counter[str]:
    """What the fullest rank holds, and what one sends."""
    cosine = HiddenCosine(stack="encoder", layers="last", projection=True)
    terms = {
        "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll()),
        "cos": WeightedTerm(1.0, "gold", "src_token", cosine),
    }
    optim = Weighed(1e-3, (0.9, 0.98), 1e-9, 0.0, 1.0, "constant", 0)
    teacher = FrozenTeacher(model(TEACHER, 2))
    settings: dict[str, Any] = {"max_steps": 2, "chunk_size": 64, "strategy": strategy}
    watch = Watch(1)
    fit(
        StudentModule(model(STUDENT, 1), Objective(terms), teacher, optim, **settings),
        Equal(num_microbatches),
        max_steps=2,
        precision="fp32",
        strategy=strategy.trainer_arguments("cpu"),
        loggers=[],
        callbacks=[watch],
        checkpoint=Path(tempfile.gettempdir()) / "there is none",
    )
    found = ranks.of_all(dict(watch.told))
    return Counter({name: max(told.get(name, 0) for told in found) for name in {n for told in found for n in told}})


def said(layout: Layout, num_microbatches: int) -> dict[str, int]:
    """The same from the arithmetic."""
    num_ranks = 1 if layout.name == "single" else NUM_RANKS
    training = Training(
        architecture=STUDENT,
        teacher=TEACHER,
        cache="none",
        precision="fp32",
        teacher_precision="fp32",
        tokens_per_step=int(num_ranks * num_microbatches * ROWS * LENGTH * REAL_SHARE),
        microbatch_tokens=2 * ROWS * LENGTH,
        chunk_size=64,
        longest=LENGTH,
        targets_per_source=1,
        logit_buffers=3,
        hidden=(HiddenPair("encoder", projected=True),),
        on_gpu=False,
    )
    memory = footprint.memory(training, layout, num_ranks)
    traffic = footprint.traffic(training, layout, num_ranks)
    kinds = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
    parts = num_ranks if layout.teacher == "sharded" else 1
    return {
        **{part: getattr(memory, part) for part in ("parameters", "gradients", "optimizer")},
        "teacher": teacher_footprint.at_rest(TEACHER, "fp32", parts),
        **{f"sent {kind}": getattr(traffic, kind) for kind in kinds},
    }


def measure() -> list[dict[str, Any]]:
    """A row for every strategy and some numbers of microbatches; the first before there is a process group."""
    rows = []
    for title, (layout, strategy) in STRATEGIES.items():
        for num in {"ddp": (3,), "zero2": (1, 3), "zero3": (1, 3)}.get(title, (1,)):
            told, expected = measured(strategy, num), said(layout, num)
            rows.append({"strategy": title, "microbatches": num, "measured": told, "said": expected})
    return rows


def table() -> list[dict[str, Any]]:
    """Starts a process that becomes two, and reads what they found. Raises: AssertionError where they find nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "table.json"
        command = [sys.executable, "-m", "tests.footprint_ranks", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert out.exists(), told.stderr[-5000:]  # gloo may abort a process that is already done
        found: list[dict[str, Any]] = json.loads(out.read_text())
        return found


def become_ranks() -> None:
    """Forks: what torchrun does, but everything is imported once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(NUM_RANKS)}
    common |= {"LOCAL_WORLD_SIZE": str(NUM_RANKS), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    for rank in range(1, NUM_RANKS):
        if os.fork() == 0:
            os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
            return
    os.environ.update(common, RANK="0", LOCAL_RANK="0")


def show(rows: list[dict[str, Any]]) -> None:
    """Prints measured / said, in bytes."""
    columns = list(rows[0]["said"])
    print(f"{'measured / as built, bytes':26} {'microbatches':>12}", *(f"{name:>21}" for name in columns))
    for row in rows:
        cells = [f"{row['measured'].get(name, 0):,} / {row['said'][name]:,}" for name in columns]
        print(f"{row['strategy']:26} {row['microbatches']:>12}", *(f"{cell:>21}" for cell in cells))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        show(table())
        sys.exit()
    torch.set_num_threads(1)
    become_ranks()
    result = measure()
    if ranks.rank() == 0:
        Path(sys.argv[1] + ".tmp").write_text(json.dumps(result))
        os.replace(sys.argv[1] + ".tmp", sys.argv[1])
    dist.barrier()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in the usual way
