"""What the checks run on: sentences, models and objective of a plan, each finished or replaced, and which of the two.

A finished artefact of the store is used as it is. Without one: the first 2,000 training pairs with a small tokenizer,
models of the configured shapes with random weights (the student through its `init`), neighbours' targets for labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from kdlab.artifacts.stage import Step, plan_keys
from kdlab.artifacts.store import Store
from kdlab.checks.sentences import FROM_FIRST, Labels, Sentences, choose, stand_in
from kdlab.data.batching import GOLD_ALONE, StepStream
from kdlab.data.labels import PseudoLabels
from kdlab.data.mixing import Mixing
from kdlab.data.prepared import PreparedCorpus
from kdlab.data.tokenizer import Tokenizer
from kdlab.errors import UserError
from kdlab.models.folder import load_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer
from kdlab.objectives.objective import Objective
from kdlab.training.optim import Optim
from kdlab.types import Batch

SMALL_VOCABULARY = 1000
WHOLE = 10**9  # tokens: no step and no microbatch is cut


@dataclass(frozen=True)
class Material:
    """What the checks run on.

    Args:
        student, teacher: fp32, on the CPU, in eval mode; no teacher where neither a term nor `init` needs one.
        trained: which of the two have learnt something.
        tokenizers: by whose they are: corpus, teacher, student; those that are there.
        vocabulary_is_whole: the corpus has the configured vocabulary, and not a small one in its place.
        origins: for each part where it comes from, in words.
    """

    student: Transformer
    teacher: Transformer | None
    trained: frozenset[str]
    objective: Objective
    sentences: Sentences
    labels: Labels | None
    mixing: Mixing
    tokenizers: dict[str, Tokenizer]
    vocabulary_is_whole: bool
    optim: Optim
    max_steps: int
    seed: int
    chunk_size: int
    precision: str
    teacher_precision: str
    origins: dict[str, str]

    @property
    def where(self) -> str:
        """The sentences and their targets, in words."""
        return f"{len(self.sentences)} sentences, {'gold' if self.labels is None else 'gold and pseudo'}"

    def stream(self, *, tokens_per_step: int = WHOLE, microbatch_tokens: int = WHOLE) -> StepStream:
        """The sentences as training sees them."""
        return StepStream(
            self.sentences,
            labels=self.labels,
            mixing=self.mixing,
            seed=self.seed,
            tokens_per_step=tokens_per_step,
            microbatch_tokens=microbatch_tokens,
            src_pad_id=self.student.config.src_vocab_size - 1,
            tgt_pad_id=self.student.config.tgt_vocab_size - 1,
        )

    def step(self, *, microbatch_tokens: int = WHOLE) -> list[Batch]:
        """All sentences as one optimizer step; where targets are drawn, an epoch that draws both kinds."""
        stream = self.stream(microbatch_tokens=microbatch_tokens)
        draws = self.labels is not None and 0.0 < self.mixing.mix < 1.0
        epochs = map(stream.epoch, range(100 if draws else 0))
        both = (epoch for epoch in epochs if epoch.takes_gold.any() and epoch.takes_pseudo.any())
        return stream.microbatches(next(both, None) or stream.epoch(0), 0)

    def gold(self, *, microbatch_tokens: int = WHOLE) -> list[Batch]:
        """The same sentences with their gold targets, as validation sees them."""
        return replace(self, labels=None, mixing=GOLD_ALONE).step(microbatch_tokens=microbatch_tokens)


class FirstPairs:
    """A source of the first pairs of others, which are given as nodes; lines without a target are passed over."""

    def __init__(self, nodes: Iterable[Any], num_pairs: int):
        self._nodes, self._num_pairs = nodes, num_pairs

    def lines(self) -> Iterator[tuple[str, str]]:
        lines = chain.from_iterable(instantiate(node).lines() for node in self._nodes)
        return islice((pair for pair in lines if pair[1] is not None), self._num_pairs)


def gather(plan: Sequence[Step], store: Store, work: Path) -> Material:
    """The material of a plan; what has to be made is made in `work`. Raises: UserError."""
    steps, keys = {step.name: step for step in plan}, plan_keys(plan)
    places = {name: store.folder(step.stage, keys[name]) for name, step in steps.items()}
    finished = {n: place for n, place in places.items() if store.manifest(steps[n].stage, keys[n]) is not None}
    student_step = _student(steps)
    params, inputs, local = student_step.params, student_step.inputs, student_step.local
    origins: dict[str, str] = {}
    folders = {who: finished[name] for who, name in (("student", "student"), *inputs.items()) if name in finished}
    teacher_step = steps[inputs["teacher"]] if "teacher" in inputs else None
    if teacher_step is not None and "teacher" not in folders and teacher_step.stage != "train_model":
        folders["teacher"] = _bring(teacher_step, work)

    donor, adopted = folders.get("teacher", folders.get("student")), steps[inputs["corpus"]].inputs.get("teacher")
    if donor is None and adopted is not None:  # the corpus takes the vocabulary of a teacher that no term asks
        donor = finished.get(adopted) or _bring(steps[adopted], work)
    corpus_folder = folders.get("corpus") or _small_corpus(steps[inputs["corpus"]], donor, work)
    corpus, made_here = PreparedCorpus.open(corpus_folder), "corpus" not in folders
    origins["corpus"] = (
        f"replaced: the first {FROM_FIRST:,} pairs of the configured data, {corpus.tokenizer.tgt_vocab_size:,} entries"
        if made_here
        else f"finished, {corpus_folder}"
    )
    labels, mixing = None, GOLD_ALONE
    if "labels" in inputs:
        mixing = Mixing(params["mix"], params["mix_by"])
        if made_here:
            folders.pop("labels", None)  # they belong to the rows of the finished corpus
        labels = PseudoLabels.open(folders["labels"], corpus.train) if "labels" in folders else None
    sentences, found = choose(corpus.train, labels)
    if "labels" in inputs:
        origins["pseudo-labels"] = (
            f"finished, {folders['labels']}" if found else "replaced: each sentence has its neighbour's gold target"
        )
        found = found or stand_in(sentences)

    if "cache" in inputs:
        origins["teacher cache"] = "not looked at: the teacher itself is asked (every run compares its cache with it)"
    teacher = None if teacher_step is None else _teacher(teacher_step, folders.get("teacher"), origins)
    student = _start(params, folders.get("student"), teacher, corpus, origins)
    tokenizers = {"corpus": corpus.tokenizer}
    tokenizers |= {who: Tokenizer.open(folders[who] / "tokenizer") for who in ("teacher", "student") if who in folders}
    return Material(
        student=student,
        teacher=teacher,
        trained=frozenset(folders) & {"student", "teacher"},
        objective=instantiate(params["objective"], _convert_="all"),
        sentences=sentences,
        labels=found,
        mixing=mixing,
        tokenizers=tokenizers,
        vocabulary_is_whole=not made_here or donor is not None or bool(steps[inputs["corpus"]].local["tokenizer_path"]),
        optim=Optim(**params["optim"]),
        max_steps=params["max_steps"],
        seed=params["seed"],
        chunk_size=local["chunk_size"],
        precision=params["trainer"]["precision"],
        teacher_precision=params.get("teacher_precision", params["trainer"]["precision"]),
        origins=origins,
    )


def _student(steps: dict[str, Step]) -> Step:
    if "student" in steps and steps["student"].stage == "train_model":
        return steps["student"]
    raise UserError(
        f"the recipe has the steps {', '.join(steps)} and no training named 'student', so there is no objective to "
        "check; choose recipe=train_only, word_kd, seq_kd or hybrid"
    )


def _bring(step: Step, work: Path) -> Path:
    """A brought teacher that is not in the store yet; one on the hub is not fetched for a check."""
    if not Path(step.local["path"]).is_dir():
        raise UserError(
            f"the teacher {step.local['path']} is not in the store, so not even its shape is known; fetch it with "
            "python -m kdlab.run ... until=teacher and check again"
        )
    place = work / "teacher"
    step.run(place, {}, step.params, step.local)
    return place


def _small_corpus(step: Step, donor: Path | None, work: Path) -> Path:
    """The first pairs, prepared; with the tokenizer of a finished model or a given one, else a small one of its own."""
    sources = {**step.local["sources"], "tests": {}}
    for part in ("train", "valid"):
        nodes = sources[part] if isinstance(sources[part], list) else [sources[part]]
        first = {"_target_": "kdlab.checks.material.FirstPairs", "nodes": nodes, "num_pairs": FROM_FIRST}
        sources[part] = [{**first, "_recursive_": False}]
    local = {**step.local, "sources": sources}
    if donor is not None:
        step.run(work / "corpus", {"teacher": donor}, step.params, local)
        return work / "corpus"
    wanted = step.params["tokenizer"].get("vocab_size", SMALL_VOCABULARY)
    # What 2,000 lines can give: with few words less, with many characters only what is configured.
    sizes = [wanted] if step.local["tokenizer_path"] else [min(wanted, SMALL_VOCABULARY), wanted, 500, 250]
    for attempt, size in enumerate(sizes):
        place = work / f"corpus_{attempt}"
        params = {**step.params, "tokenizer": {**step.params["tokenizer"], "vocab_size": size}}
        try:
            step.run(place, {}, params, local)
            return place
        except UserError as error:
            if size == sizes[-1] or "no vocabulary of that size" not in str(error):
                raise
    raise AssertionError("the last size returns or raises")


def _teacher(step: Step, folder: Path | None, origins: dict[str, str]) -> Transformer:
    if folder is not None:
        origins["teacher"] = f"finished, {folder}"
        return load_model(folder)
    origins["teacher"] = "replaced: random weights of the configured shape"
    model = Transformer(instantiate(step.params["model"]))
    random_init(model, step.params["seed"] + 1000)  # a student of the same shape and seed must be another
    return _unsettled(model, 1)


def _start(
    params: dict[str, Any],
    folder: Path | None,
    teacher: Transformer | None,
    corpus: PreparedCorpus,
    origins: dict[str, str],
) -> Transformer:
    if folder is not None:
        origins["student"] = f"finished, {folder}"
        return load_model(folder)
    node = dict(params["model"])
    for side in ("src_vocab_size", "tgt_vocab_size"):
        if node.get(side) is None:  # it adopts a vocabulary
            node[side] = getattr(corpus.tokenizer, side)
    model = Transformer(instantiate(node))
    start, given = instantiate(params["init"], _partial_=True, _convert_="all"), {}
    if "teacher" in inspect.signature(start).parameters:
        given["teacher"] = teacher
    name = params["init"]["_target_"].rpartition(".")[2]
    if "folder" in inspect.signature(start).parameters:  # what comes before the student is not made for a check
        start, name = random_init, "random_init, not pre-trained"
    start(model, seed=params["seed"], **given)
    origins["student"] = f"replaced: the configured shape, started by {name}"
    return _unsettled(model, 2)


@torch.no_grad()
def _unsettled(model: Transformer, seed: int) -> Transformer:
    """The model with noise on its biases and norms, behind whose zeros and ones a defect could hide."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()
