"""A student in training: what reaches checkpoint and optimizer, what stays untouched, what stops it."""

import dataclasses
import os
import signal
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdlab.data.batching import StepStream, collate, evaluation_batches
from kdlab.errors import UserError, memory_may_run_out
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.ancestor import Ancestor
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.word_kd import WordKD
from kdlab.strategies.single import Single
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.teachers.offloaded import Offloaded
from kdlab.training.callbacks import Progress, Resume, Steps, Validation
from kdlab.training.fit import fit
from kdlab.training.metrics import MetricsCsv
from kdlab.training.module import StudentModule
from kdlab.training.optim import Optim

V = 20
PADS = {"src_pad_id": V - 1, "tgt_pad_id": V - 1}
ADAM = Optim(lr=1e-3, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, clip_norm=1.0, schedule="constant", warmup_steps=0)


class Rows(SimpleNamespace):
    """Sentences of 2 to 9 tokens; the target is the source backwards."""

    def __len__(self) -> int:
        return len(self.row_id)


def rows(count: int = 60) -> Rows:
    generator = np.random.default_rng(5)
    src = [np.append(generator.integers(2, V - 1, generator.integers(1, 9)), 0) for _ in range(count)]
    tgt = [np.append(ids[:-1][::-1], 0) for ids in src]
    lengths = np.array([len(ids) for ids in src], dtype=np.int32)
    return Rows(
        row_id=np.arange(count),
        src_len=lengths,
        tgt_len=lengths,
        src_ids=lambda index: [src[i] for i in index],
        tgt_ids=lambda index: [tgt[i] for i in index],
    )


def model(seed: int, dropout: float = 0.0) -> Transformer:
    made = Transformer(TransformerConfig(V, V, 1, 1, 16, 32, 2, dropout=dropout))
    random_init(made, seed)
    return made


KD = Objective(
    {
        "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll()),
        "kd": WeightedTerm(0.5, "all", "tgt_token", WordKD(2.0)),
    }
)


@dataclasses.dataclass
class Trained:
    module: StudentModule
    validation: Validation
    steps: int
    folder: Path


def train(folder: Path, *, max_steps: int = 6, objective=KD, optim=ADAM, microbatch_tokens=1000, **changes) -> Trained:
    torch.manual_seed(0)
    student = changes.get("student") or model(1, dropout=changes.get("dropout", 0.0))
    teacher = changes.get("teacher") or FrozenTeacher(model(2, dropout=0.5))
    module = StudentModule(student, objective, teacher, optim, max_steps=max_steps, chunk_size=50)
    stream = StepStream(rows(), seed=1, tokens_per_step=80, microbatch_tokens=microbatch_tokens, **PADS)
    metrics, loader = MetricsCsv(folder / "metrics.csv"), Steps(stream)
    validation = Validation(
        folder / "snapshots",
        lambda: evaluation_batches(rows(20), microbatch_tokens=1000, **PADS),
        None,
        every=2,
        select="nll",
        average=changes.get("average", 2),
        patience=changes.get("patience"),
    )
    checkpoint = folder / "last.ckpt"
    steps = fit(
        module,
        loader,
        max_steps=max_steps,
        precision=changes.get("precision", "fp32"),
        strategy=Single().trainer_arguments("cpu"),
        loggers=[metrics],
        callbacks=[
            validation,
            Progress("test", validation, every=1),
            Resume(checkpoint, loader, metrics, validation, every=2),
        ],
        checkpoint=checkpoint,
    )
    return Trained(module, validation, steps, folder)


def test_the_ancestors_term_sees_padding_and_the_triple_loss_both_models_layers(tmp_path):
    """Through the whole module: models that compute padding for one, hidden states and a projection for the other."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    nll = WeightedTerm(1.0, "gold", "tgt_token", Nll())
    padded = Objective({"nll": nll, "kd": WeightedTerm(0.5, "gold", "position", Ancestor(1.0, 0.5))})
    batch = next(iter(evaluation_batches(rows(20), microbatch_tokens=1000, **PADS)))
    module = train(tmp_path / "a", max_steps=2, objective=padded).module
    (sums,) = [module._forward(batch, {"nll": 1.0, "kd": 1.0}, padded.active).sums]
    args = batch.src_BS, batch.src_mask_BS, batch.targets.tgt_in_RT, batch.targets.source_R, None
    ours, theirs = module.student(*args).decoder_ND, module._teacher(batch, padded=True).decoder_ND
    assert len(ours) == batch.num_units("gold", "position") > batch.num_units("gold", "tgt_token")
    with module._teacher.head() as head:
        logits = [h @ head_.weight_VD[: V - 1].T for h, head_ in ((ours, module.student.head()), (theirs, head))]
    everywhere = 1.5 * WordKD(1.0)(*logits, batch.targets.tgt_out_RT.flatten()).sum()
    torch.testing.assert_close(sums["kd"], everywhere.detach(), rtol=1e-4, atol=1e-4)

    cosine = WeightedTerm(1.0, "gold", "tgt_token", HiddenCosine(layers="spread", projection=True))
    done = train(tmp_path / "b", max_steps=30, objective=Objective({"nll": nll, "cos": cosine}))
    lines = [line.split(",") for line in (tmp_path / "b" / "metrics.csv").read_text().splitlines()]
    cos = [float(value) for _, name, value in lines if name == "train/cos"]
    assert cos[-1] < 0.8 * cos[0]
    assert set(done.validation.averaged()) == set(done.module.student.state_dict())  # no projection among them


def test_the_student_learns_and_the_best_validations_are_averaged(tmp_path):
    done = train(tmp_path, max_steps=30, average=3)
    scores = [score for _, score in done.validation.history]
    assert scores[-1] > scores[0] + 0.3  # nats
    assert done.validation.chosen() == [step for step, _ in sorted(done.validation.history, key=lambda e: -e[1])][:3]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [
        f"step_{step:08d}.safetensors" for step in sorted(done.validation.chosen())
    ]
    last = done.module.student.state_dict()
    averaged = done.validation.averaged()
    assert set(averaged) == set(last) and averaged["src_embedding.weight"][V - 1].abs().max() == 0.0


def test_early_stopping_and_its_resume(tmp_path):
    hopeless = dataclasses.replace(ADAM, lr=1e-12)
    done = train(tmp_path, max_steps=50, optim=hopeless, patience=2)
    assert done.steps == 6  # best at step 2, then two that are no better
    assert train(tmp_path, max_steps=50, optim=hopeless, patience=2).steps == 6


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path):
    train(tmp_path, max_steps=4)
    good = (tmp_path / "last.ckpt").read_bytes()

    student = model(1)
    forward = student.forward

    def poisoned(*args):
        out = forward(*args)
        return dataclasses.replace(out, decoder_ND=out.decoder_ND * float("nan"))

    student.forward = poisoned
    with pytest.raises(UserError, match="not finite at step 5"):
        train(tmp_path, max_steps=8, student=student)
    assert (tmp_path / "last.ckpt").read_bytes() == good


def test_bf16_training_stays_close_to_fp32(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one = train(tmp_path / "a", max_steps=20).validation.history[-1][1]
    other = train(tmp_path / "b", max_steps=20, precision="bf16").validation.history[-1][1]
    assert one == pytest.approx(other, abs=0.02) and one != other


def test_a_checkpoint_goes_where_it_belongs_and_asks_nothing_of_an_idle_gpu(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space below $TMPDIR, and a GPU that others use")

    for place, name in ((tempfile, "mkstemp"), (torch.cuda, "get_rng_state")):
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    train(tmp_path, max_steps=2)
    monkeypatch.undo()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (resumed,) = (state for name, state in saved["callbacks"].items() if name.startswith("Resume"))
    assert [list(rng) for rng in resumed["rng"]] == [["cpu"]] and saved["global_step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "metrics.csv", "snapshots"]


def test_the_rate_of_a_row_is_that_of_its_step(tmp_path):
    train(tmp_path, max_steps=6, optim=dataclasses.replace(ADAM, warmup_steps=4))
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    rates = [float(value) for _, name, value in rows if name == "train/lr"]
    assert rates == pytest.approx([ADAM.lr * share for share in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)], rel=1e-6)


def test_running_out_of_memory_says_what_to_write():
    told = r"memory ran out .*1152921504606846976.*: write less, and give"
    with pytest.raises(UserError, match=told), memory_may_run_out("write less"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_may_run_out("write less"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_metrics_rows_behind_a_checkpoint_are_forgotten(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path)
    for step in (1, 2, 3):
        log.log_metrics({"loss": 1.5 / step, "lr": 0.1}, step)
    with path.open("a") as file:
        file.write("4,lo")  # torn by a kill
    MetricsCsv(path).forget_after(2)
    assert path.read_text() == "step,metric,value\n1,loss,1.5\n1,lr,0.1\n2,loss,0.75\n2,lr,0.1\n"


def test_no_warning_escapes(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, max_steps=2)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("int8", 0.1)])
def test_a_teacher_has_a_precision_of_its_own_and_a_row_no_neighbours(precision, tolerance):
    exact, teacher = FrozenTeacher(model(3)), FrozenTeacher(model(3), precision=precision)

    def states(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        (batch,) = evaluation_batches(rows(count), microbatch_tokens=10**6, **PADS)
        order = batch.row_id_B[batch.targets.source_R].repeat_interleave(batch.targets.mask_RT.sum(1))
        few = order.argsort(stable=True)[: int((order < 5).sum())]  # the rows with the smallest ids, in their order
        return teacher(batch).decoder_ND[few].float(), exact(batch).decoder_ND[few]

    many, expected = states(40)
    few, _ = states(5)
    error = (many - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < tolerance
    assert (many - few).abs().max() < 0.02  # bf16 products of another shape round differently
    assert teacher.dtype == torch.bfloat16


def test_validation_tells_how_the_terms_pull(tmp_path):
    done = train(tmp_path, max_steps=2)
    names = [line.split(",")[1] for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    watched = {f"valid/{n}" for n in ("teacher_entropy", "teacher_agreement", "teacher_kl", "weighted/kd", "nll")}
    assert watched | {"valid/grad_norm/kd", "valid/grad_cosine/nll/kd", "train/peak_memory_mib"} <= set(names)

    # a student that is its teacher: no distance, full agreement, and a KD gradient that vanishes
    module, twin = done.module, model(4)
    module._teacher = FrozenTeacher(model(4))
    module.student.load_state_dict(twin.state_dict())
    found = module.validate(evaluation_batches(rows(20), microbatch_tokens=60, **PADS))
    assert found["teacher_kl"] == 0.0 and found["teacher_agreement"] == 1.0 and found["kd"] == 0.0
    assert found["grad_norm/kd"] < 1e-6 < found["grad_norm/nll"]
    assert 0 < found["teacher_entropy"] < np.log(V - 1)
    assert module.student.training and all(p.grad is None for p in module.student.parameters())

    # a term called nll that is another does not pass for the plain one
    module.objective = Objective({"nll": WeightedTerm(2.0, "gold", "tgt_token", Nll(0.3))})
    found = module.validate(evaluation_batches(rows(20), microbatch_tokens=60, **PADS))
    assert found["weighted/own_nll"] == pytest.approx(2 * found["own_nll"]) and found["own_nll"] != found["nll"]

    # one term twice: the same direction; the weight counts in the norm and not in the cosine
    twice = {name: WeightedTerm(weight, "gold", "tgt_token", Nll()) for name, weight in (("a", 1.0), ("b", 3.0))}
    module.objective = Objective(twice)
    found = module.validate(evaluation_batches(rows(20), microbatch_tokens=60, **PADS))
    assert found["grad_cosine/a/b"] == pytest.approx(1.0, abs=1e-5)
    assert found["grad_norm/b"] == pytest.approx(3 * found["grad_norm/a"], rel=1e-5)
    assert found["weighted/b"] == pytest.approx(3 * found["nll"])


def test_a_microbatch_without_rows_reaches_every_parameter_and_changes_nothing():
    """A rank that has nothing to do still takes part in every exchange of gradients."""
    student, teacher = model(1), FrozenTeacher(model(2))
    cosine = WeightedTerm(1.0, "gold", "src_token", HiddenCosine(stack="encoder", projection=True))
    objective = Objective({**KD.terms, "cos": cosine})
    module = StudentModule(student, objective, teacher, ADAM, max_steps=1, chunk_size=50)
    empty = collate(rows(), np.arange(0), **PADS)
    assert not any(empty.num_units("all", unit) for unit in ("tgt_token", "src_token", "sentence", "position"))
    module._forward(empty, {"nll": 1.0, "kd": 1.0, "cos": 1.0}, objective.active).loss.backward()
    assert [float(p.grad.abs().max()) for p in module.parameters()] == [0.0] * len(list(module.parameters()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_under_way_and_ends(tmp_path, monkeypatch, number):
    before, step = signal.getsignal(number), StudentModule.training_step

    def told(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", told)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, max_steps=9)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3  # checkpoints are due at 2, 4, ...
    assert signal.getsignal(number) == before
    assert train(tmp_path, max_steps=5).steps == 5
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows if "train/loss" in row] == ["1", "2", "3", "4", "5"]


def test_a_signal_in_the_last_step_ends_the_run_too_and_its_training_only_remains_to_be_finished(tmp_path, monkeypatch):
    """Else the run would go on with labelling for hours, and its batch script would wait for it until it is killed."""
    whole, step = train(tmp_path / "whole", max_steps=5), StudentModule.training_step

    def told(self, batch, batch_idx):
        assert self.trainer.global_step < 5
        if self.trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", told)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "told", max_steps=5)
    again = train(tmp_path / "told", max_steps=5)
    assert again.steps == 5 and again.validation.history == whole.validation.history
    assert all(
        torch.equal(value, again.validation.averaged()[name]) for name, value in whole.validation.averaged().items()
    )


def test_a_checkpoint_that_is_cut_short_is_called_so(tmp_path):
    train(tmp_path, max_steps=2)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="last.ckpt is cut short"):
        train(tmp_path, max_steps=4)


def test_offloaded_weights_are_on_the_device_only_while_their_layer_computes():
    """The CPU stands for a GPU: what visits it is a copy."""
    layer, seen = torch.nn.Linear(2, 2), []
    Offloaded(layer.parameters(), torch.device("cpu")).around(layer)
    home = layer.weight.data_ptr()
    layer.register_forward_pre_hook(lambda *_: seen.append(layer.weight.data_ptr()))
    layer(torch.ones(1, 2))
    assert seen != [home] and layer.weight.data_ptr() == home

    teacher, offloaded = FrozenTeacher(model(3)), FrozenTeacher(model(3))
    offloaded.place("offloaded", torch.device("cpu"))
    (batch,) = evaluation_batches(rows(20), microbatch_tokens=10**6, **PADS)
    with teacher.guide(batch) as (one, _), offloaded.guide(batch) as (other, _):
        assert torch.equal(one.hidden_ND, other.hidden_ND) and torch.equal(one.head.weight_VD, other.head.weight_VD)

    made = model(3)
    FrozenTeacher(made).place("offloaded", torch.device("meta"))  # made at home: of the device it wants the positions
    assert made.positions.device.type == "meta" and {p.device.type for p in made.parameters()} == {"cpu"}


def test_an_int8_teacher_stays_where_it_is():
    with pytest.raises(UserError, match="strategy.teacher=offloaded with trainer.teacher_precision=int8"):
        FrozenTeacher(model(3), precision="int8").place("offloaded", torch.device("cpu"))
