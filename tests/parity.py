"""Every strategy against one process: the same optimizer steps, the same numbers. `python -m tests.parity` prints them.

One torchrun of two gloo processes runs all strategies on a tiny corpus of unequal sentences, dropout 0: ten steps each.
Then defects are planted, which must show. tests/integration/test_parity.py holds the table to its bounds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from kdlab.data.batching import GOLD_ALONE, StepStream, StreamPosition, collate, evaluation_batches
from kdlab.data.mixing import Mixing
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.word_kd import WordKD
from kdlab.strategies import ranks
from kdlab.strategies.ddp import DataParallel, _SummingDDP
from kdlab.strategies.fsdp import FullySharded
from kdlab.strategies.single import Single
from kdlab.strategies.strategy import Strategy
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.callbacks import Steps
from kdlab.training.fit import fit
from kdlab.training.module import StudentModule
from kdlab.training.optim import Optim

V, PADS, NUM_STEPS = 40, {"src_pad_id": 39, "tgt_pad_id": 39}, 10
# Of how many biases the key's is which: its true gradient is zero, and Adam makes steps of what rounding leaves.
KEYS = {".qkv_proj.bias": (3, 1), ".kv_proj.bias": (2, 0)}

nll, kd = WeightedTerm(1.0, "gold", "tgt_token", Nll()), WeightedTerm(0.5, "all", "tgt_token", WordKD(2.0))
cosine = HiddenCosine(stack="encoder", layers="spread", projection=True)
OBJECTIVES = {
    "word_kd": Objective({"nll": nll, "kd": kd}),
    "triple": Objective(
        {
            "nll": nll,
            "kd": kd,
            "cos": WeightedTerm(
                1.0, "gold", "src_token", HiddenCosine(stack="encoder", layers="spread", projection=True)
            ),
        }
    ),
    "hybrid": Objective(
        {
            "nll": replace(nll, mixed=True),
            "pseudo": WeightedTerm(1.0, "pseudo", "tgt_token", Nll(), mixed=True),
            "kd": kd,
        },
        mix=0.34,
    ),
}
STRATEGIES: dict[str, Strategy] = {
    "ddp": DataParallel(2),
    "zero1": DataParallel(2, shard_optimizer=True),
    "zero2": FullySharded(2, reshard_after_forward=False),
    "zero3": FullySharded(2, reshard_after_forward=True),
    "zero3, teacher sharded, layers computed again": FullySharded(2, reshard_after_forward=True, teacher="sharded"),
    "fsdp, 2 replicas, on the CPU, teacher offloaded": FullySharded(
        2, reshard_after_forward=True, replicas=2, cpu_offload=True, teacher="offloaded"
    ),
}
WIRE = FullySharded(2, reshard_after_forward=True, gather="bf16")
EVERYTHING = os.environ.get("PARITY") == "everything"  # else what is cheap enough for every run of the tests
RUN = [("word_kd", "sgd"), ("triple", "adam"), ("triple", "sgd"), ("hybrid", "sgd")]
VARIANTS_RUN = [("triple", "adam"), ("hybrid", "sgd")]  # those with a comma in their name
ADAM = Optim(lr=4e-4, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, clip_norm=1.0, schedule="constant", warmup_steps=0)


class Sgd(Optim):
    """Plain gradient descent, which hides no wrong scale."""

    def optimizer(self, parameters: Any, strategy: Strategy) -> Any:
        return strategy.optimizer(torch.optim.SGD, list(parameters), lr=self.lr)


OPTIMS = {"sgd": Sgd(**{**asdict(ADAM), "lr": 0.01}), "adam": ADAM}


class Rows(SimpleNamespace):
    """Sentences of 1 to 16 tokens; what PseudoLabels have, too."""

    @classmethod
    def make(cls, seed: int, num: int = 160) -> Rows:
        generator = np.random.default_rng(seed)
        src, tgt = (
            [np.append(generator.integers(2, V - 1, generator.integers(0, 16)), 0) for _ in range(num)] for _ in "st"
        )
        return cls(
            row_id=np.arange(num),
            src_len=np.array([len(ids) for ids in src]),
            tgt_len=np.array([len(ids) for ids in tgt]),
            src_ids=lambda index: [src[i] for i in index],
            tgt_ids=lambda index: [tgt[i] for i in index],
            has_label=np.arange(num) % 5 > 0,
        )

    def __len__(self) -> int:
        return len(self.row_id)

    def drawn(self, epoch: int, seed: int) -> Rows:
        """As labels, of which there is one a row."""
        return self


def model(seed: int, width: int = 16, dropout: float = 0.0) -> Transformer:
    made = Transformer(TransformerConfig(V, V, 1, 1, width, 2 * width, 2, dropout=dropout, softmax_bias=True))
    random_init(made, seed)
    return made


@dataclass(frozen=True)
class Told:
    """What a training gave: its log, then weights and logits at the end."""

    log: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    logits: torch.Tensor

    def distance(self, other: Told) -> dict[str, float]:
        """The greatest differences."""
        logs = [(ours, theirs, name) for ours, theirs in zip(self.log, other.log, strict=True) for name in theirs]
        return {
            "grad_norm": max(abs(ours[name] - theirs[name]) for ours, theirs, name in logs if name == "grad_norm"),
            "terms": max(abs(ours[name] - theirs[name]) for ours, theirs, name in logs if name != "grad_norm"),
            "logits": float((self.logits - other.logits).abs().max()),
            "weights": self.near(other),
        }

    def near(self, other: Told) -> float:
        """The greatest difference of weights."""
        near = {name: (self.weights[name] - value).abs() for name, value in other.weights.items()}
        for name in near:
            for fused, (number, key) in KEYS.items():
                if name.endswith(fused):
                    near[name] = torch.cat([part for i, part in enumerate(near[name].chunk(number)) if i != key])
        return max(float(value.max()) for value in near.values())


class Recorder(Callback):
    """Keeps what the log shows of every step."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.told.append({name: float(value) for name, value in outputs.items()})


def stream(labelled: bool, rank: int, num_ranks: int) -> StepStream:
    """Steps of a few microbatches."""
    return StepStream(
        Rows.make(5),
        labels=Rows.make(6) if labelled else None,
        mixing=Mixing(0.34, "sampling") if labelled else GOLD_ALONE,
        seed=1,
        tokens_per_step=160,
        microbatch_tokens=150,
        rank=rank,
        num_ranks=num_ranks,
        **PADS,
    )


def train(
    strategy: Strategy,
    objective: Objective,
    optim: Optim = ADAM,
    *,
    precision: str = "fp32",
    num_steps: int = NUM_STEPS,
    steps: Any = None,
    teacher_trains: bool = False,
) -> Told:
    """Some steps under a strategy; the same numbers on every rank."""
    torch.manual_seed(0)
    net = model(2, width=24, dropout=0.3)
    settings: dict[str, Any] = {"max_steps": num_steps, "chunk_size": 50, "strategy": strategy}
    student = model(1)
    student.recompute_layers = strategy.teacher == "sharded"
    module = StudentModule(student, objective, FrozenTeacher(net), optim, **settings)
    net.train(teacher_trains)
    rank, num_ranks = (0, 1) if isinstance(strategy, Single) else (int(os.environ["RANK"]), 2)
    recorder = Recorder()
    fit(
        module,
        steps or Steps(stream("pseudo" in objective.terms, rank, num_ranks)),
        max_steps=num_steps,
        precision=precision,
        strategy=strategy.trainer_arguments("cpu"),
        loggers=[],
        callbacks=[recorder],
        checkpoint=Path(tempfile.gettempdir()) / "there is none",
    )
    whole = module.whole()
    (batch,) = evaluation_batches(Rows.make(7, 20), microbatch_tokens=10**6, **PADS)
    targets, trained = batch.targets, whole.student
    with torch.no_grad():
        out = trained(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
        logits = trained.logits(out.decoder_ND)
    return Told(recorder.told, {name: value.detach().clone() for name, value in whole.named_parameters()}, logits)


class Given:
    """One step, cut by hand: long sentences first on one rank, short ones first on the other."""

    def __init__(self, rank: int, num_ranks: int):
        rows = Rows.make(5)
        by_length = np.argsort(rows.tgt_len, kind="stable")
        short, long = np.split(by_length[:24], 2), np.split(by_length[-10:], 2)
        ranks_do = [[long[0], short[0]], [short[1], long[1]]]
        mine = ranks_do[rank] if num_ranks == 2 else [*ranks_do[0], *ranks_do[1]]
        self._step = [collate(rows, index, **PADS) for index in mine]

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield StreamPosition(0, 1), self._step


class Taken(Sgd):
    """Keeps the gradients of the last step."""

    gradient: ClassVar[dict[int, torch.Tensor]] = {}

    def clip(self, parameters: Any) -> torch.Tensor:
        parameters = list(parameters)
        self.gradient.update({i: ranks.full(p.grad).clone() for i, p in enumerate(parameters)})
        return super().clip(parameters)


def gradient(strategy: Strategy) -> torch.Tensor:
    """Of the step cut by hand."""
    rank, num_ranks = (0, 1) if isinstance(strategy, Single) else (int(os.environ["RANK"]), 2)
    train(strategy, OBJECTIVES["triple"], Taken(**asdict(ADAM)), num_steps=1, steps=Given(rank, num_ranks))
    return torch.cat([value.flatten() for value in Taken.gradient.values()])


def mean_of_means(patch: Any) -> None:
    """Every rank divides by its own units, then ranks are averaged."""

    def own(values: Any) -> Any:
        return {n: v * ranks.num_ranks() for n, v in values.items()} if "loss" not in values else summed(values)

    summed = ranks.summed
    patch(ranks, "summed", own)


def wrapper_bypassed(patch: Any) -> None:
    """The student is called past the hooks that gather, and past those that sum."""
    patch(_SummingDDP, "pre_backward", lambda self, loss: None)
    patch(Transformer, "__call__", Transformer.forward)


PLANTED: dict[str, Callable[[Any], None]] = {"mean of means": mean_of_means, "wrapper bypassed": wrapper_bypassed}


def planted(plant: Callable[[Any], None], strategy: Strategy, expected: torch.Tensor) -> float:
    """How far the gradient is off under a defect; infinitely where FSDP2 refuses to compute it (a bypassed wrapper).

    The same gradient without a defect is in the table, so that an error of this program shows there.
    """
    kept: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, value: Any) -> None:
        kept.append((owner, name, owner.__dict__.get(name)))
        setattr(owner, name, value)

    plant(patch)
    try:
        return float((gradient(strategy) - expected).abs().max())
    except (RuntimeError, AttributeError, NotImplementedError):
        if plant is not wrapper_bypassed:
            raise
        return float("inf")
    finally:
        for owner, name, value in kept:
            delattr(owner, name) if value is None else setattr(owner, name, value)


def measure() -> dict[str, Any]:
    """The whole table, as one rank finds it."""
    alone: dict[Any, Told] = {}
    for name, objective in OBJECTIVES.items():  # before there is a process group
        alone |= {(name, kind): train(Single(), objective, optim) for kind, optim in OPTIMS.items()}
    in_bf16, expected = train(Single(), OBJECTIVES["hybrid"], precision="bf16"), gradient(Single())
    rows: list[dict[str, Any]] = []
    cut_by_hand, wrong = {}, {}

    def add(title: str, run: str, told: Told, reference: Told) -> None:
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in told.weights.values())).hexdigest()
        same = len(set(ranks.of_all(digest))) == 1
        rows.append({"strategy": title, "run": run, **told.distance(reference), "ranks equal": same})

    for title, strategy in STRATEGIES.items():
        for (name, kind), reference in alone.items():
            if EVERYTHING or (name, kind) in (VARIANTS_RUN if "," in title else RUN):
                add(title, f"{name}, {kind}", train(strategy, OBJECTIVES[name], OPTIMS[kind]), reference)
        cut_by_hand[title] = float((gradient(strategy) - expected).abs().max())
    add("fsdp, bf16 on the wire", "hybrid, adam, bf16", train(WIRE, OBJECTIVES["hybrid"], precision="bf16"), in_bf16)
    for title in ("ddp", "zero3"):
        told = train(STRATEGIES[title], OBJECTIVES["hybrid"], precision="bf16")
        add(title, "hybrid, adam, bf16", told, in_bf16)
        told = train(STRATEGIES[title], OBJECTIVES["hybrid"], teacher_trains=True)
        wrong[f"{title}: teacher in training mode"] = told.distance(alone["hybrid", "adam"])["grad_norm"]
        for defect, plant in PLANTED.items():
            wrong[f"{title}: {defect}"] = planted(plant, STRATEGIES[title], expected)
    return {"rows": rows, "gradient of [long, short] and [short, long]": cut_by_hand, "planted": wrong}


def table(**environment: str) -> dict[str, Any]:
    """Starts the two processes and reads what they found. Raises: AssertionError where they find nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "table.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        for _ in range(
            3
        ):  # gloo may abort a process (-6) between one training and the next, of which there are dozens here
            told = subprocess.run(
                [*command, "-m", "tests.parity", str(out)], env=environment, capture_output=True, text=True, timeout=900
            )
            if out.exists() or "exitcode: -6" not in told.stderr:
                break
        assert out.exists(), told.stderr[-5000:]  # gloo may abort a process that is already done
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    kinds = ("grad_norm", "terms", "logits", "weights")
    print(f"{'greatest difference from single':50} {'':20}", *(f"{kind:>9}" for kind in kinds), "ranks equal")
    for row in found["rows"]:
        print(f"{row['strategy']:50} {row['run']:20}", *(f"{row[k]:9.1e}" for k in kinds), row["ranks equal"])
    for title in ("gradient of [long, short] and [short, long]", "planted"):
        print(f"\n{title}")
        for name, value in found[title].items():
            print(f"{name:71} {value:9.1e}")
    print("\nstopped and gone on:", found["stopped and gone on"])
    print("from single through all and back:", {k: v for k, v in found["chain"].items() if k != "saved"})


if __name__ == "__main__":
    if "RANK" not in os.environ:
        show(table(PARITY="everything"))
        sys.exit()
    from tests import continuing  # which takes its models from here

    torch.set_num_threads(1)
    chain = continuing.Chain()
    uninterrupted = continuing.before(chain)
    result = measure()
    for link in continuing.LINKS:
        chain.add(link, STRATEGIES[link])
    result["stopped and gone on"] = {
        title: continuing.exactness(STRATEGIES[title])
        for title in ("zero1", "zero3, teacher sharded, layers computed again")
    }
    dist.destroy_process_group()
    if int(os.environ["RANK"]) == 0:
        result["chain"] = continuing.after(chain, uninterrupted)
    if int(os.environ["RANK"]) == 0:
        Path(sys.argv[1] + ".tmp").write_text(json.dumps(result))
        os.replace(sys.argv[1] + ".tmp", sys.argv[1])
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in the usual way
