"""Names, types and ranges of the configuration; no torch, no values (those are in conf/, each with its comment).

A field without a default must be in the YAML. `Any` marks what a `_target_` describes: targets.py knows its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

SCHEMA = "schema"  # its name in Hydra's ConfigStore, the first entry of conf/config.yaml


def within(want: str, holds: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """A field whose value must satisfy `holds`; `want` says so in words."""
    return field(default=default, metadata={"want": want, "holds": holds})


def above(bound: float) -> Any:
    """Greater than a bound, and finite."""
    return within(f"> {bound:g}", lambda value: bound < value < math.inf)


def at_least(bound: float) -> Any:
    """A bound or more, and finite."""
    return within(f">= {bound:g}", lambda value: bound <= value < math.inf)


def share(*, one: bool = True) -> Any:
    """From 0 to 1; `one` says whether 1 itself is allowed."""
    return within(f"in [0, 1{']' if one else ')'}", lambda value: 0 <= value < 1 or (one and value == 1))


def one_of(*choices: str) -> Any:
    """One of a few words."""
    return within(f"one of {', '.join(choices)}", lambda value: value in choices)


# OmegaConf makes a frozen dataclass read-only, also for Hydra's own merging: the only dataclasses here that are not.


@dataclass
class Recipe:
    """Which steps run in which order; `steps` are the names that its plan may hold."""

    _target_: str = MISSING
    steps: list[str] = MISSING


@dataclass
class Optim:
    """Adam, its schedule and the clip."""

    lr: float = above(0)
    betas: list[float] = within("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v))
    eps: float = above(0)
    weight_decay: float = at_least(0)
    clip_norm: float | None = above(0)
    schedule: str = one_of("inverse_sqrt", "linear", "cosine", "constant")
    warmup_steps: int = at_least(0)


@dataclass
class Teacher:
    """Where the teacher comes from."""

    source: str = one_of("none", "train", "folder", "marian", "huggingface")
    path: str | None = MISSING
    revision: str | None = None
    src_code: str | None = None
    tgt_code: str | None = None
    prefix: str | None = None
    model: Any = MISSING
    optim: Optim | None = MISSING
    max_steps: int | None = at_least(1)
    seed: int | None = at_least(0)
    label_smoothing: float | None = share(one=False)


@dataclass
class TeacherCache:
    """What is kept of the teacher's answers, so that it is asked once."""

    kind: str = one_of("none", "hidden", "top_k")
    dtype: str | None = one_of("fp32", "bf16")
    top_k: int | None = at_least(1)
    temperatures: list[float] | None = within(
        "a list of different numbers > 0",
        lambda v: bool(v) and len(set(v)) == len(v) and all(0 < t < math.inf for t in v),
    )


@dataclass
class Cleaning:
    """Which training pairs are dropped."""

    max_tokens: int | None = at_least(2)
    max_ratio: float | None = at_least(1)
    drop_duplicates: bool = MISSING
    drop_overlap: bool = MISSING


@dataclass
class Tokenizer:
    """The vocabulary."""

    model: str = one_of("unigram", "bpe")
    joint: bool = MISSING
    sample_lines: int = at_least(1)
    path: str | None = MISSING
    vocab_size: int = at_least(16)


@dataclass
class Data:
    """The corpus: training, validation and test sets."""

    name: str = MISSING
    src_lang: str = MISSING
    tgt_lang: str = MISSING
    root: str | None = MISSING
    train: list[Any] = MISSING
    valid: Any = MISSING
    tests: dict[str, Any] = MISSING
    cleaning: Cleaning = MISSING
    tokenizer: Tokenizer = MISSING
    seed: int = at_least(0)


@dataclass
class Term:
    """A term with its place in the objective."""

    weight: float = at_least(0)
    on: str = one_of("gold", "pseudo", "all")
    per: str = one_of("tgt_token", "src_token", "sentence", "position")
    term: Any = MISSING
    mixed: bool = False


@dataclass
class Objective:
    """What a student minimises: a sum of terms."""

    terms: dict[str, Term] = MISSING


@dataclass
class Decode:
    """How text is made."""

    beam_size: int = at_least(1)
    length_penalty: float = at_least(0)
    max_length_ratio: float = at_least(0)
    max_length_extra: int = at_least(0)
    batch_tokens: int = at_least(1)
    precision: str = one_of("fp32", "bf16", "int8")


@dataclass
class Sampling:
    """From what labels are drawn."""

    temperature: float = above(0)
    top_k: int | None = at_least(1)
    top_p: float | None = within("> 0 and <= 1", lambda value: 0 < value <= 1)
    seed: int = at_least(0)


@dataclass
class LabelDecode(Decode):
    """How pseudo-labels are made."""

    engine: str = one_of("pytorch", "ctranslate2")
    precision: str = one_of("fp32", "bf16", "fp16", "int8")
    n_best: int = at_least(1)
    sampling: Sampling | None = MISSING
    ensemble: list[str] = MISSING


@dataclass
class Reverse:
    """The model that judges labels by translating them back."""

    path: str | None = MISSING
    drop_share: float = within("between 0 and 1", lambda value: 0 < value < 1)


@dataclass
class Labels:
    """Which hypotheses become pseudo-labels."""

    choose: str = one_of("first", "bleu", "chrf", "all")
    max_length_ratio: float | None = at_least(1)
    max_repetition: int | None = at_least(1)
    drop_copies: bool = MISSING
    min_score: float | None = within("finite", math.isfinite)
    reverse: Reverse = MISSING


@dataclass
class SourceNoise:
    """What happens to the student's sources in training."""

    drop: float = share(one=False)
    mask: float = share(one=False)
    swap_distance: int = at_least(0)


@dataclass
class Evaluate:
    """What is scored."""

    tests: list[str] | None = MISSING
    metrics: list[str] = within("a list of bleu and chrf", lambda v: bool(v) and set(v) <= {"bleu", "chrf"})


@dataclass
class Trainer:
    """How training goes."""

    precision: str = one_of("fp32", "bf16")
    teacher_precision: str | None = one_of("fp32", "bf16", "int8")
    tokens_per_step: int = at_least(1)
    microbatch_tokens: int = at_least(1)
    chunk_size: int = at_least(1)
    recompute_layers: bool = MISSING
    val_every: int = at_least(1)
    checkpoint_every: int = at_least(1)
    log_every: int = at_least(1)
    select: str = one_of("bleu", "loss")
    average: int = at_least(1)
    patience: int | None = at_least(1)
    threads: int = at_least(1)
    device: str = one_of("cpu", "cuda", "auto")


@dataclass
class Cluster:
    """What a job of a sweep asks SLURM for."""

    partition: str | None = MISSING
    account: str | None = MISSING
    qos: str | None = MISSING
    time_min: int = at_least(5)
    signal_s: int = at_least(30)
    cpus: int = at_least(1)
    mem_gb: int | None = at_least(1)
    gpus: int = at_least(0)
    gpu_memory_gb: float = above(0)
    max_parallel: int = at_least(1)
    label_tasks: int = at_least(1)
    setup: list[str] = MISSING


@dataclass
class Paths:
    """Where results are kept."""

    store: str = MISSING
    runs: str = MISSING


def _is_folder_name(value: str) -> bool:
    return bool(value) and not value.startswith(".") and not set(value) & set("/\\\0\n")


@dataclass
class Config:
    """The whole configuration: the root dials, then the groups."""

    name: str = within("a name for a folder, without '/'", _is_folder_name)
    seed: int = at_least(0)
    temperature: float = above(0)
    weight_nll: float = at_least(0)
    weight_pseudo: float = at_least(0)
    weight_kd: float = at_least(0)
    weight_cos: float = at_least(0)
    gold_share: float = within("in (0, 1]", lambda value: 0 < value <= 1)
    pseudo_share: float = within("in (0, 1]", lambda value: 0 < value <= 1)
    subset_seed: int = at_least(0)
    rounds: int = at_least(1)
    label_tag: str | None = within(
        "null or one word that is no other piece, e.g. <pseudo>",
        lambda value: len(value.split()) == 1 == len(value.split("\0")) and value not in ("</s>", "<unk>", "<pad>"),
    )
    mix: float = share()
    mix_by: str = one_of("sampling", "weights")
    min_labelled: float = share()
    max_steps: int = at_least(1)
    pretrain_steps: int = at_least(0)
    vocab_size: int = at_least(16)
    baseline: bool = MISSING
    until: str | None = MISSING
    dry_run: bool = MISSING

    recipe: Recipe = MISSING
    strategy: Any = MISSING
    teacher: Teacher = MISSING
    teacher_cache: TeacherCache = MISSING
    student: Any = MISSING
    init: Any = MISSING
    data: Data = MISSING
    source_noise: SourceNoise = MISSING
    objective: Objective = MISSING
    baseline_objective: Objective = MISSING
    optim: Optim = MISSING
    decode: Decode = MISSING
    label_decode: LabelDecode = MISSING
    labels: Labels = MISSING
    evaluate: Evaluate = MISSING
    trainer: Trainer = MISSING
    logger: dict[str, Any] = MISSING
    cluster: Cluster = MISSING
    paths: Paths = MISSING


# Ranges of arguments of kdlab's own `_target_` nodes, whose classes only say the type: a name means the same in all.
ARGUMENTS: dict[str, Any] = {
    **{
        name: at_least(1)
        for name in ("num_encoder_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads", "max_positions")
    },
    **{name: at_least(16) for name in ("src_vocab_size", "tgt_vocab_size")},
    **{name: share(one=False) for name in ("dropout", "attention_dropout", "label_smoothing")},
    "temperature": above(0),
    "weight": at_least(0),
    "teacher_share": within("between 0 and 1", lambda value: 0 < value < 1),
    "kd_share": share(),
    "num_lines": at_least(1),
    "source_only": share(),
    **{name: at_least(1) for name in ("devices", "replicas")},
    "teacher": one_of("replicated", "sharded", "offloaded"),  # of a strategy
    "gather": one_of("fp32", "bf16"),
    "activation": one_of("relu", "gelu", "silu", "swiglu"),
    "norm": one_of("post", "pre"),
    "tie": one_of("all", "decoder_softmax", "none"),
}


def config_dir() -> Path:
    """Where the YAML is: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Puts the typed root under its name into Hydra's ConfigStore."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=SCHEMA, node=Config)


@contextmanager
def untyped() -> Iterator[None]:
    """Hydra composes without types in here, so that every problem is found and not only the first."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=SCHEMA, node={})
    try:
        yield
    finally:
        register()


def validate(cfg: DictConfig) -> list[str]:
    """Everything that is wrong with a composed configuration: keys, types, ranges, contradictions, targets."""
    from kdlab import contradictions, targets, validation

    found = validation.shape_problems(cfg) + targets.problems(cfg)
    return list(dict.fromkeys(found + contradictions.contradictions(cfg, tolerant=bool(found))))
