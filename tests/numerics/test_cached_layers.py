"""Hidden terms against a teacher that was asked before: its decoder's last layer is kept beside what its head sees."""

from types import SimpleNamespace

import pytest
import torch

from kdlab.data.batching import evaluation_batches
from kdlab.data.labels import PseudoLabels
from kdlab.errors import UserError
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.hidden_mse import HiddenMse
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.word_kd import WordKD
from kdlab.stages import cache_teacher
from kdlab.stages.train_model import _cached_teacher
from kdlab.teachers.cached import CachedTeacher
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.module import StudentModule
from kdlab.training.optim import Optim
from tests.numerics.test_teacher_cache import FP32, LOCAL, V, batches, frozen, label, opened, prepare

D_STUDENT, D_TEACHER = 16, 24
OPTIM = Optim(1e-3, (0.9, 0.98), 1e-9, 0.0, 1.0, "constant", 0)


def objective(term: HiddenCosine | HiddenMse) -> Objective:
    kd = WeightedTerm(0.5, "all", "tgt_token", WordKD(2.0))
    return Objective({"kd": kd, "hidden": WeightedTerm(1.0, "all", "tgt_token", term)})


def module(teacher: CachedTeacher | FrozenTeacher, aim: Objective) -> StudentModule:
    """The same student and the same maps every time."""
    torch.manual_seed(5)
    student = Transformer(TransformerConfig(V, V, 1, 2, D_STUDENT, 32, 2, norm="pre"))
    random_init(student, 3)
    return StudentModule(student, aim, teacher, OPTIM, max_steps=1, chunk_size=50)


@pytest.fixture(scope="module", params=["pre", "post"])
def made(request, tmp_path_factory):
    """A cache of a teacher that has a norm between its last layer and its head, and of one that has none."""
    folder = tmp_path_factory.mktemp(request.param)
    corpus = prepare(folder / "corpus")
    inputs = {"corpus": corpus.folder, "labels": label(folder / "labels", corpus), "teacher": folder / "teacher"}
    teacher = Transformer(TransformerConfig(V, V, 1, 3, D_TEACHER, 48, 2, norm=request.param))
    random_init(teacher, 2)
    save_model(inputs["teacher"], teacher, {})
    corpus.tokenizer.save(inputs["teacher"] / "tokenizer")
    labels = PseudoLabels.open(inputs["labels"], corpus.train)
    told = cache_teacher.run(folder / "cache", inputs, FP32 | {"last_layer": True}, LOCAL)
    columns = 2 if request.param == "pre" else 1  # without a norm the head sees the last layer
    assert told["bytes_per_position"] == columns * 4 * D_TEACHER
    return SimpleNamespace(corpus=corpus, labels=labels, inputs=inputs, cache=folder / "cache")


@pytest.mark.parametrize("term", [HiddenCosine(projection=True), HiddenMse(projection=True)])
def test_the_last_layer_from_a_cache_gives_the_loss_and_gradient_of_the_teacher_itself(made, term):
    aim, found = objective(term), list(batches(made, 1200))[:3]
    told = {}
    for name, teacher in {"asked": frozen(made), "cached": opened(made, made.cache)}.items():
        student = module(teacher, aim).eval()
        for batch in found:
            reduced = student._forward(batch, dict.fromkeys(aim.active, 0.01), aim.active)
            reduced.loss.backward()
        gradient = {n: p.grad.flatten() for n, p in student.named_parameters() if p.grad is not None}
        told[name] = {key: float(value) for key, value in reduced.sums.items()}, gradient
    assert told["cached"][0] == pytest.approx(told["asked"][0], rel=1e-5) and told["asked"][0]["hidden"] > 0.1
    assert "projections.hidden.0.weight" in told["asked"][1]
    ours, theirs = (torch.cat(list(told[name][1].values())) for name in ("cached", "asked"))
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_validation_targets_have_their_layer_too(made):
    aim = objective(HiddenCosine(projection=True))
    pads = {"src_pad_id": made.corpus.tokenizer.src_pad_id, "tgt_pad_id": made.corpus.tokenizer.tgt_pad_id}
    (batch,) = evaluation_batches(made.corpus.valid, microbatch_tokens=10_000, **pads)
    asked, cached = (
        module(teacher, aim).eval()._forward(batch, dict.fromkeys(aim.active, 1.0), aim.active, "valid").sums
        for teacher in (frozen(made), opened(made, made.cache))
    )
    assert float(cached["hidden"]) == pytest.approx(float(asked["hidden"]), rel=1e-5)


def test_in_bf16_the_last_layer_is_rounded_and_no_more(made, tmp_path):
    """Half a unit of 8 bits in each number of it; the cosine feels the square of that."""
    cache_teacher.run(tmp_path, made.inputs, FP32 | {"last_layer": True, "dtype": "bf16"}, LOCAL)
    aim, batch = objective(HiddenCosine(projection=True)), next(batches(made, 1200))
    with frozen(made).guide(batch) as (_, asked), opened(made, tmp_path).guide(batch) as (_, kept):
        off = (kept.decoder_layers[-1].float() - asked.decoder_layers[-1]).abs()
        assert off.max() > 0 and (off <= 2**-8 * asked.decoder_layers[-1].abs() + 1e-5).all()
    told = [
        float(module(teacher, aim).eval()._forward(batch, {"kd": 1.0, "hidden": 1.0}, aim.active).sums["hidden"])
        for teacher in (frozen(made), opened(made, tmp_path))
    ]
    assert told[1] == pytest.approx(told[0], rel=1e-3) and told[1] != told[0]


@pytest.mark.parametrize("changes", [{"layers": "spread"}, {"layers": [[0, 1]]}, {"stack": "encoder"}])
def test_layers_that_are_not_kept_are_refused(made, changes):
    term = HiddenCosine(projection=True, **changes)
    with pytest.raises(UserError, match="compares other layers or padding"):
        _cached_teacher(made.inputs | {"cache": made.cache}, made.corpus, made.labels, objective(term), "cpu", "fp32")


def test_a_cache_without_a_layer_is_refused_where_a_term_compares_one(made, tmp_path):
    cache_teacher.run(tmp_path, made.inputs, FP32, LOCAL)
    inputs, parts = made.inputs | {"cache": tmp_path}, (made.corpus, made.labels)
    tokens = Objective({"nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())})
    assert not _cached_teacher(inputs, *parts, tokens, "cpu", "fp32").has_last_layer
    with pytest.raises(UserError, match="was made without the decoder's last layer"):
        _cached_teacher(inputs, *parts, objective(HiddenCosine(projection=True)), "cpu", "fp32")
