"""Checks of real training, a few steps through Lightning: a teacher that stays as it is, a run that resumes exactly."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdlab.checks.material import Material
from kdlab.checks.table import Finding, does_not_apply
from kdlab.data.batching import evaluation_batches
from kdlab.models.transformer import Transformer
from kdlab.strategies.single import Single
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.callbacks import Progress, Resume, Steps, Validation
from kdlab.training.fit import fit
from kdlab.training.metrics import MetricsCsv
from kdlab.training.module import StudentModule

NUM_STEPS = 4  # the checkpoint comes after half of them; an epoch has about three
DROPOUT = 0.3  # at least, so that a random state or a teacher in training mode shows
CONTINUED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")  # of a checkpoint
OF_THE_MACHINE = ("tokens_per_s", "peak_memory")  # metrics that no run repeats


def teacher_frozen(material: Material) -> Finding:
    """Counts what a teacher must not do or be part of, around two steps of training."""
    name = "teacher frozen and deterministic"
    if material.teacher is None or not material.objective.needs_teacher:
        return does_not_apply(name, "no term compares with a teacher")
    model = _with_dropout(material.teacher)
    teacher = FrozenTeacher(model, precision=material.teacher_precision)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = material.step()
    told = [teacher(batch).decoder_ND for batch in batches]  # int8 weights are in no state
    broken = set(_moods(model))
    with tempfile.TemporaryDirectory() as folder:
        module = _train(material, Path(folder), _with_dropout(material.student), teacher, until=NUM_STEPS // 2)
        saved = torch.load(Path(folder) / "last.ckpt", weights_only=True)
    module.train()
    broken |= set(_moods(model))
    after = model.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(after[key], value) for key, value in before.items()):
        broken.add("its weights have changed")
    if not all(torch.equal(teacher(batch).decoder_ND, one) for batch, one in zip(batches, told, strict=True)):
        broken.add("two forwards differ")
    theirs = {value.data_ptr() for value in after.values()}
    if theirs & {value.data_ptr() for value in [*module.state_dict().values(), *module.parameters()]}:
        broken.add("it is in the module's state")
    own = [key for key, _ in module.named_parameters() if key.startswith(("student.", "projections."))]
    if set(saved["state_dict"]) != set(own):
        broken.add("the checkpoint holds more than the student")
    if sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]) != len(own):
        broken.add("the optimizer holds more than the student")
    what = "; ".join([*sorted(broken), "mode, gradients, forwards, weights, state, optimizer, checkpoint"])
    steps = f"{NUM_STEPS // 2} steps of Lightning, {material.precision}, teacher {material.teacher_precision}"
    return Finding(name, float(len(broken)), 0.0, f"broken promises: {what}; {steps}, dropout {DROPOUT:g}")


def resume_complete(material: Material) -> Finding:
    """Counts tensors, values and rows of metrics that differ between a whole run and one that was stopped half-way."""
    with tempfile.TemporaryDirectory() as temporary:
        results = []
        for kind in ("whole", "stopped"):
            folder = Path(temporary) / kind
            folder.mkdir()
            teacher = None
            if material.teacher is not None and material.objective.needs_teacher:
                teacher = FrozenTeacher(copy.deepcopy(material.teacher), precision=material.teacher_precision)
            student = _with_dropout(material.student)
            if kind == "stopped":
                _train(material, folder, student, teacher, until=NUM_STEPS // 2)
                with torch.no_grad():
                    for parameter in student.parameters():
                        parameter.add_(1.0)  # all that continues must come from the checkpoint
            _train(material, folder, student, teacher, until=NUM_STEPS)
            saved = torch.load(folder / "last.ckpt", weights_only=True)
            rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
            rows = [row for row in rows if not any(word in row for word in OF_THE_MACHINE)]
            results.append([[saved[key] for key in CONTINUED], rows])
    num_leaves, num_apart = _compare(*results)
    half = NUM_STEPS // 2
    what = f"of {num_leaves:,} tensors, values, rows of metrics: those that differ; {NUM_STEPS} steps against {half} + "
    return Finding("resume state complete", float(num_apart), 0.0, f"{what}{half}, {material.precision}")


def _train(
    material: Material, folder: Path, student: Transformer, teacher: FrozenTeacher | None, *, until: int
) -> StudentModule:
    """As stages/train_model.py does, from the checkpoint in the folder where there is one."""
    torch.manual_seed(material.seed)
    module = StudentModule(
        student, material.objective, teacher, material.optim, max_steps=NUM_STEPS, chunk_size=material.chunk_size
    )
    (whole,) = material.step()
    tokens = whole.num_units("all", "tgt_token") // 3 + 1
    stream = material.stream(tokens_per_step=tokens, microbatch_tokens=tokens)
    loader, metrics, checkpoint = Steps(stream), MetricsCsv(folder / "metrics.csv"), folder / "last.ckpt"
    validation = Validation(
        folder / "snapshots",
        lambda: evaluation_batches(
            material.sentences, microbatch_tokens=tokens, src_pad_id=stream.src_pad_id, tgt_pad_id=stream.tgt_pad_id
        ),
        None,
        every=NUM_STEPS // 2,
        select="nll",
        average=1,
        patience=None,
    )
    fit(
        module,
        loader,
        max_steps=until,
        precision=material.precision,
        strategy=Single().trainer_arguments("cpu"),
        loggers=[metrics],
        callbacks=[
            validation,
            Progress("check", validation, every=1),
            Resume(checkpoint, loader, metrics, validation, every=NUM_STEPS // 2),
        ],
        checkpoint=checkpoint,
    )
    return module


def _moods(model: Transformer) -> list[str]:
    found = ["it is in training mode"] if any(module.training for module in model.modules()) else []
    return found + (["it takes gradients"] if any(p.requires_grad for p in model.parameters()) else [])


def _with_dropout(model: Transformer) -> Transformer:
    """A copy that has some."""
    copied = Transformer(replace(model.config, dropout=max(DROPOUT, model.config.dropout)))
    copied.load_state_dict(model.state_dict())
    return copied


def _compare(one: Any, other: Any) -> tuple[int, int]:
    """Leaves of two nested values, and how many of them differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        found = [_compare(one.get(key), other.get(key)) for key in keys]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        found = [_compare(a, b) for a, b in zip(one, other, strict=True)]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return 1, int(one.shape != other.shape or not torch.equal(one, other))
    else:
        return 1, int(one != other)
    return sum(num for num, _ in found), sum(apart for _, apart in found)
