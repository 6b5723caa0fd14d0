"""The arithmetic of memory: against the real model, a real step and a real loss on a CPU, and the lecture's figures."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from kdlab import schema, targets
from kdlab.errors import UserError
from kdlab.models.init import random_init
from kdlab.models.int8 import Int8Linear
from kdlab.models.shapes import num_parameters, parameter_shapes
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.recipes.settings import active
from kdlab.strategies import footprint, lecture, teacher_footprint
from kdlab.strategies.footprint import Layout
from kdlab.strategies.trainings import REAL_SHARE, HiddenPair, Training
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.module import StudentModule
from kdlab.training.optim import Optim
from kdlab.types import Batch, Head, Side, Targets
from tests.bench_loss_memory import LiveBytes

STUDENTS = sorted(path.stem for path in (schema.config_dir() / "student").glob("*.yaml"))
DIALS = {"weight_nll": 1.0, "weight_pseudo": 1.0, "weight_kd": 1.0, "weight_cos": 1.0, "vocab_size": 4000}
SMALL = {
    **{"src_vocab_size": 1000, "tgt_vocab_size": 1000, "num_encoder_layers": 2, "num_decoder_layers": 1},
    **{"d_model": 64, "d_ff": 256, "num_heads": 4, "dropout": 0.1, "tie": "decoder_softmax", "softmax_bias": True},
}
PAIR = HiddenPair("decoder", projected=True)
LARGE = SMALL | {"num_encoder_layers": 3, "d_model": 96}


def option(group, name, **dials):
    """A group's YAML, resolved."""
    found = OmegaConf.load(schema.config_dir() / group / f"{name}.yaml")
    for base in (one for one in found.pop("defaults", []) if one != "_self_"):
        found = OmegaConf.merge(OmegaConf.load(schema.config_dir() / group / f"{base}.yaml"), found)
    node = OmegaConf.create(DIALS | dials | {group: found})
    return OmegaConf.to_container(node, resolve=True)[group]


def training(architecture=SMALL, teacher=None, **settings):
    usual = {"cache": "none", "precision": "fp32", "teacher_precision": "fp32", "tokens_per_step": 1000}
    usual |= {"microbatch_tokens": 10**6, "chunk_size": 128, "longest": 25, "targets_per_source": 1, "logit_buffers": 3}
    return Training(architecture, teacher, **usual | {"on_gpu": False} | settings)


@pytest.mark.parametrize("name", STUDENTS)  # those of conf/teacher are these, or are read from a folder
def test_parameters_are_those_of_the_model(name):
    architecture = option("student", name)
    for change in (
        {},
        {"tie": "none"},
        {"tie": "all"},
        {"norm": "pre"},
        {"activation": "swiglu"},
        {"softmax_bias": False},
    ):
        with torch.device("meta"):
            model = Transformer(targets.build(architecture | change))
        expected = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
        assert list(parameter_shapes(architecture | change).items()) == expected


def test_every_teacher_that_is_trained_here_is_a_student_of_the_same_name():
    for path in (schema.config_dir() / "teacher").glob("*.yaml"):
        node = OmegaConf.load(path)
        assert node.source != "train" or {"/student@model": path.stem} in node.defaults


def test_counts_of_the_deck():
    counts = [num_parameters(parameter_shapes(option("student", name, vocab_size=32000))) for name in STUDENTS]
    assert {18_259_200, 21_945_600, 94_960_896, 153_746_688, 468_657_408} <= set(counts)


def test_the_lecture_has_120_60_50_and_40_gigabytes_and_twice_and_three_times_the_parameters():
    names = ("ddp", "zero1", "zero2", "zero3")
    together = [sum(lecture.memory(7_500_000_000, name, 3).values()) for name in names]
    assert together == [Fraction(gigabytes * 10**9) for gigabytes in (120, 60, 50, 40)]
    assert [lecture.traffic(name, 3) for name in names] == [2, 2, 2, 3]


def test_as_built_a_parameter_takes_16_12_8_and_8_bytes_on_two_devices():
    subject = training(SMALL | {"tie": "all", "src_vocab_size": 1024, "tgt_vocab_size": 1024, "softmax_bias": False})
    found = {}
    for name in footprint.STRATEGIES:
        memory = footprint.memory(subject, Layout(name), 2)
        held = memory.parameters + memory.gradients + memory.optimizer - 4 * len(subject.shapes)
        found[name] = held / num_parameters(subject.shapes)
    assert found["single"] == found["ddp"] == 16.0
    assert found["zero1"] == pytest.approx(12.0, abs=0.1)  # whole tensors are dealt out
    assert found["zero2"] == found["zero3"] == found["fsdp"] == 8.0


def test_traffic_in_parameters_as_a_ring_sends_it():
    subject = training(SMALL | {"num_encoder_layers": 24, "src_vocab_size": 16, "tgt_vocab_size": 16})
    size = footprint.FP32 * num_parameters(subject.shapes)
    found = {name: footprint.traffic(subject, Layout(name), 2).ring / size for name in footprint.STRATEGIES}
    assert found["single"] == 0.0
    assert (found["ddp"], found["zero1"]) == (2.0, 3.0)
    assert found["zero2"] == pytest.approx(2.0, abs=0.01)
    assert found["zero3"] == pytest.approx(3.0, abs=0.01)  # but for embeddings and head, gathered once
    assert footprint.traffic(subject, Layout("fsdp", gather="bf16"), 2).ring / size == pytest.approx(2.0, abs=0.01)


def test_every_microbatch_gathers_and_only_the_last_one_sends_gradients():
    once, thrice = training(microbatch_tokens=10**6), training(microbatch_tokens=400)
    assert (once.num_microbatches(2), thrice.num_microbatches(2)) == (1, 3)
    for name in ("zero2", "zero3"):
        one, three = (footprint.traffic(subject, Layout(name), 2) for subject in (once, thrice))
        assert (three.all_gather, three.reduce_scatter) == (3 * one.all_gather, one.reduce_scatter)
    assert footprint.traffic(thrice, Layout("ddp"), 2) == footprint.traffic(once, Layout("ddp"), 2)
    pending = [footprint.memory(subject, Layout("zero3"), 2).copies for subject in (once, thrice)]
    assert pending[1] > pending[0]  # gradients are whole until the last


def test_options_of_a_strategy():
    subject = training(teacher=LARGE)
    plain, across = (
        footprint.memory(subject, Layout("fsdp"), 4),
        footprint.memory(subject, Layout("fsdp", replicas=2), 4),
    )
    assert across.parameters == footprint.memory(subject, Layout("fsdp"), 2).parameters > plain.parameters
    sent = footprint.traffic(subject, Layout("fsdp", replicas=2), 4)
    assert sent.all_reduce == across.gradients
    away = footprint.memory(subject, Layout("fsdp", cpu_offload=True), 4)
    assert (away.parameters, away.gradients, away.optimizer) == (0, 0, 0)
    whole, part, visiting = (
        footprint.memory(subject, Layout("zero3", teacher=place), 4).teacher
        for place in ("replicated", "sharded", "offloaded")
    )
    assert visiting < part < whole
    assert footprint.traffic(subject, Layout("ddp", teacher="sharded"), 4).all_gather == 4 * teacher_footprint.at_rest(
        LARGE, "fp32", 4
    )
    rest = [teacher_footprint.at_rest(LARGE, "fp32", num) for num in (1, 4)]
    assert rest[1] == pytest.approx(rest[0] / 4, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_frozen_teacher_is_as_large_as_said(precision):
    model = Transformer(TransformerConfig(**LARGE))
    random_init(model, 1)
    teacher = FrozenTeacher(model, precision=precision)
    with teacher.head() as head:
        kept = {x.untyped_storage()._cdata: x for x in (*model.parameters(), *model.buffers(), head.weight_VD)}
    subject = training(teacher=LARGE, teacher_precision=precision)
    size = subject.microbatch(1)
    outputs = 4 * LARGE["d_model"] * (3 * size.src + 2 * size.tgt)
    told = footprint.memory(subject, Layout("single"), 1).teacher - outputs
    packed = sum(
        layer._weight.numel() for layer in model.modules() if isinstance(layer, Int8Linear)
    )  # a byte each; what oneDNN pads is not seen
    assert told == packed + sum(x.untyped_storage().nbytes() for x in kept.values())


def test_a_cached_teacher_is_its_head_and_what_is_read_for_a_microbatch():
    """A pre-norm teacher's last layer is read beside what its head sees; a post-norm one's is the same."""
    for norm, hidden, reads in (("pre", (), 1), ("pre", (PAIR,), 2), ("post", (PAIR,), 1)):
        subject = training(teacher=LARGE | {"norm": norm}, cache="hidden", hidden=hidden)
        told = footprint.memory(subject, Layout("single"), 1).teacher
        read = reads * 4 * LARGE["d_model"] * subject.microbatch(1).tgt
        assert told == 4 * LARGE["tgt_vocab_size"] * LARGE["d_model"] + read


OBJECTIVES = sorted(path.stem for path in (schema.config_dir() / "objective").glob("*.yaml"))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_holds_as_many_tensors_of_logits_as_said(name, temperature):
    """Never more; and at most one less, where terms share."""
    num, chunk, vocab_size = 48, 24, 3000
    node = active(option("objective", name, temperature=temperature))
    params = {"model": SMALL | {"_target_": "kdlab.models.transformer.TransformerConfig"}, "objective": node}
    params["trainer"] = {"precision": "fp32", "tokens_per_step": 1}
    local = {"microbatch_tokens": 1, "chunk_size": chunk, "device": "cpu", "recompute_layers": False}
    told = Training.of_step(params, local, architecture=SMALL, teacher=LARGE, longest=None).logit_buffers
    torch.manual_seed(1)
    hidden, weight, bias = torch.randn(num, 8), torch.randn(vocab_size, 8), torch.zeros(vocab_size)
    tgt = torch.randint(vocab_size - 1, (6, 8))
    rows = Targets(torch.arange(6), torch.arange(6) > 2, tgt, tgt, torch.ones(6, 8, dtype=torch.bool))
    terms = targets.build(node, _convert_="all").token_terms
    student = Side(hidden.requires_grad_(), Head(weight.requires_grad_(), bias.requires_grad_(), vocab_size - 1))
    teacher = Side(torch.randn(num, 12), Head(torch.randn(vocab_size, 12), bias.detach(), vocab_size - 1))
    with LiveBytes([weight, bias], [hidden, teacher.hidden_ND]) as count:
        reduce(terms, dict.fromkeys(terms, 0.1), rows, student, teacher, chunk_size=chunk)
    assert told - 1.1 <= count.peak / (4 * chunk * vocab_size) <= told + 0.1


def test_a_model_that_nobody_has_written_down_is_refused():
    params = {"model": {"_target_": "torch.nn.Linear"}}
    with pytest.raises(UserError, match=r"torch\.nn\.Linear"):
        Training.of_step(params, {}, architecture=SMALL, teacher=None, longest=None)


class Stepping(StudentModule):
    """A student in training outside Lightning."""

    @property
    def trainer(self):
        return SimpleNamespace(global_step=0)

    def manual_backward(self, loss):
        loss.backward()

    def optimizers(self):
        return self.adam

    def lr_schedulers(self):
        return SimpleNamespace(step=lambda: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("distils", [False, True])
def test_a_whole_step_takes_at_its_peak_what_is_said(precision, num_microbatches, distils):
    """Against the bytes of all tensors that live at once, weights and moments apart."""
    rows, length, last = 20, 25, SMALL["tgt_vocab_size"] - 1
    student = Transformer(TransformerConfig(**SMALL))
    random_init(student, 1)
    teacher = None
    terms = {"nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())}
    if distils:
        model = Transformer(TransformerConfig(**LARGE))
        random_init(model, 2)
        teacher = FrozenTeacher(model, precision=precision)
        terms["kd"] = WeightedTerm(1.0, "gold", "tgt_token", WordKD(2.0))
    optim = Optim(1e-3, (0.9, 0.98), 1e-9, 0.0, 1.0, "constant", 0)
    module = Stepping(student, Objective(terms), teacher, optim, max_steps=9, chunk_size=128)
    module.train()
    module.adam = module.configure_optimizers()["optimizer"]
    ids, real = torch.randint(2, last, (rows, length)), torch.ones(rows, length, dtype=torch.bool)
    tgt = Targets(torch.arange(rows), torch.zeros(rows, dtype=torch.bool), ids, ids, real)
    step = [Batch(torch.arange(rows), ids, real, tgt)] * num_microbatches

    def once():
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            module.training_step((None, step), 0)

    once()  # Adam has its moments afterwards
    with LiveBytes([], []) as count:
        once()
    subject = training(
        **{"teacher": LARGE if distils else None, "precision": precision, "teacher_precision": precision},
        **{
            "tokens_per_step": int(num_microbatches * rows * length * REAL_SHARE),
            "microbatch_tokens": 2 * rows * length,
        },
        logit_buffers=7 if distils else 3,
    )
    assert (subject.microbatch(1).src, subject.num_microbatches(1)) == (rows * length, num_microbatches)
    memory = footprint.memory(subject, Layout("single"), 1)
    table = 4 * 1024 * SMALL["d_model"]
    weights = 0
    if distils:
        head = 0 if precision == "fp32" else 2 * LARGE["tgt_vocab_size"] * LARGE["d_model"]
        weights = teacher_footprint.weights(LARGE, precision) + head + 4 * 1024 * LARGE["d_model"]
    forward = memory.activations + memory.loss
    both = memory.gradients + forward if memory.accumulates else max(memory.gradients, forward)
    ratio = (memory.copies - table + memory.teacher - weights + both) / count.peak
    assert 0.99 <= ratio <= 1.05
