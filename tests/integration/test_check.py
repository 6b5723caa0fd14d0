"""`python -m kdlab.check`: green on what is sound, and red, by the right check, on each of the planted defects."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from kdlab import check, compose, run
from kdlab.artifacts.store import Store
from kdlab.checks import suite
from kdlab.checks.material import Material, gather
from kdlab.data.tokenizer import Tokenizer
from kdlab.objectives.distributions import Softened
from kdlab.objectives.reduce import Positions
from kdlab.objectives.word_kd import WordKD
from kdlab.recipes.plan import make_plan
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training import module as training_module
from kdlab.training.module import StudentModule
from kdlab.types import Batch

TINY = [
    *("data.train.0.num_lines=500", "data.valid.num_lines=20", "data.tests.toy.num_lines=20", "vocab_size=300"),
    *("student.d_model=32", "student.d_ff=64", "max_steps=60", "trainer.tokens_per_step=400", "optim.lr=0.01"),
    *("optim.warmup_steps=10", "teacher=toy_1x1", "teacher.model.d_model=32", "teacher.model.d_ff=64"),
    *("teacher.max_steps=40", "teacher.optim.lr=0.01", "teacher.optim.warmup_steps=10", "min_labelled=0"),
    *("trainer.val_every=60", "trainer.select=loss", "label_decode=greedy", "baseline=false", "temperature=2"),
]
EVERY = [name for name, _, _ in suite.CHECKS]
REAL = {"teacher frozen and deterministic", "resume state complete"}  # these train; the others are quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which everything up to the student is finished."""
    place = tmp_path_factory.mktemp("check")
    assert run.main([*TINY, "until=student", f"paths.store={place}/store", f"paths.runs={place}/runs"]) == 0
    return place


@pytest.fixture(scope="module")
def material(folder: Path) -> Material:
    """Six of its sentences, for speed."""
    whole = gather(make_plan(compose.compose(TINY).cfg), Store(folder / "store"), folder / "work")
    rows, labels = whole.sentences, whole.labels
    assert labels is not None
    sentences = type(rows)(rows.row_id[::3], rows.src[::3], rows.tgt[::3])
    return dataclasses.replace(whole, sentences=sentences, labels=type(labels)(labels.has_label[::3], labels.tgt[::3]))


def command(folder: Path, *overrides: str) -> int:
    return check.main([*overrides, f"paths.store={folder}/store", f"paths.runs={folder}/runs"])


def table(printed: str) -> dict[str, list[str]]:
    """Cells by the name of the check."""
    lines = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in printed.splitlines()]
    assert lines[0] == ["check", "holds", "found", "limit", "figure, and what it was run on"]
    return {line[0]: line[1:] for line in lines[2:]}


def failing(material: Material, *more: str) -> set[str]:
    only = (set(EVERY) - REAL) | set(more)
    return {finding.name for finding in suite.run(material, only) if finding.holds is False}


def test_green_on_a_configuration_of_which_nothing_is_finished(tmp_path, capsys):
    """The toy's own models and tokenizer, by a command that leaves the store alone."""
    assert command(tmp_path, "data.train.0.num_lines=3000") == 0
    found = table(capsys.readouterr().out)
    assert list(found) == EVERY and {cells[0] for cells in found.values()} == {"yes"}
    assert not (tmp_path / "store").exists()
    (text,) = (tmp_path / "runs").rglob("check.md")
    assert re.search(r"corpus: replaced: the first 2,000 pairs of the configured data, 1,000 entries", text.read_text())
    kept = json.loads(text.with_name("check.json").read_text())
    assert kept["material"]["teacher"] == "replaced: random weights of the configured shape"
    assert [row["name"] for row in kept["checks"]] == EVERY and all(row["holds"] is True for row in kept["checks"])
    assert all(0 <= row["found"] <= row["limit"] for row in kept["checks"])


def test_green_on_what_is_finished(folder, capsys):
    before = sorted(path for path in (folder / "store").rglob("*"))
    assert command(folder, *TINY) == 0
    found = table(capsys.readouterr().out)
    assert list(found) == EVERY and {cells[0] for cells in found.values()} == {"yes"}
    assert "student" in found["vocabulary contract"][3] and "nats a gold token" in found["vocabulary contract"][3]
    (kept,) = (folder / "runs").rglob("check.json")
    assert {origin.split(",")[0] for origin in json.loads(kept.read_text())["material"].values()} == {"finished"}
    assert sorted(path for path in (folder / "store").rglob("*")) == before


def test_without_a_teacher_its_checks_do_not_apply(folder, capsys):
    alone = ["recipe=train_only", "objective=nll", "objective.terms.nll.term.label_smoothing=0.1"]
    kept = [override for override in TINY if override.split("=")[0] in ("vocab_size", "data.train.0.num_lines")]
    assert command(folder, *alone, *kept, "name=alone") == 0
    found = table(capsys.readouterr().out)
    missing = {name for name, cells in found.items() if cells[0] == "does not apply"}
    assert missing == {"zero at equality", "high-temperature limit", "teacher frozen and deterministic"}


def test_a_wrong_configuration_is_refused_as_by_run(capsys):
    assert check.main(["temprature=1"]) == 1 == run.main(["temprature=1"])
    said = capsys.readouterr().err.splitlines()
    assert said[: len(said) // 2] == said[len(said) // 2 :] and "did you mean 'temperature'" in said[-1]
    assert check.main(["recipe=train_only", "objective=nll", "teacher.seed=3"]) == 1
    assert "has no effect" in capsys.readouterr().err


def padding_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WordKD, "counts_padding", True, raising=False)


def temperature_on_hidden_states(patch: pytest.MonkeyPatch) -> None:
    """Divides what goes into the head, in value and gradient, and takes the softmax at 1."""
    original = training_module.reduce

    def wrong(terms, scales, targets, student, teacher, **settings):
        kd = {name: t for name, t in terms.items() if isinstance(t.term, WordKD) and t.term.temperature != 1}
        if not kd:
            return original(terms, scales, targets, student, teacher, **settings)
        (temperature,) = {t.term.temperature for t in kd.values()}
        others = {name: t for name, t in terms.items() if name not in kd}
        plain = original(others, scales, targets, student, teacher, **settings)
        factor = temperature**2
        cold = {n: dataclasses.replace(t, term=WordKD(1.0, form=t.term.form)) for n, t in kd.items()}
        sides = [dataclasses.replace(side, hidden_ND=side.hidden_ND / temperature) for side in (student, teacher)]
        soft = original(cold, {n: scales[n] * factor for n in kd}, targets, *sides, **settings)
        return type(soft)(plain.loss + soft.loss, {**plain.sums, **{n: v * factor for n, v in soft.sums.items()}})

    patch.setattr(training_module, "reduce", wrong)


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    """Every microbatch is divided by its own units, and by how many there are."""
    original, step = StudentModule._forward, StudentModule.training_step

    def training_step(self, batch, batch_idx):
        self.num_microbatches = len(batch[1])
        return step(self, batch, batch_idx)

    def forward(self, batch: Batch, scales, terms, *more):
        own = self.objective.scales(self.objective.units([batch]))
        wrong = {name: own[name] / self.num_microbatches for name in scales} if set(own) == set(scales) else scales
        return original(self, batch, wrong, terms, *more)

    patch.setattr(StudentModule, "num_microbatches", 1, raising=False)
    patch.setattr(StudentModule, "training_step", training_step)
    patch.setattr(StudentModule, "_forward", forward)


def t_squared_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WordKD, "_factor", 1.0)


def swapped_kl(patch: pytest.MonkeyPatch) -> None:
    """KL(student || teacher), its gradient from autograd."""

    def call(self, student_logits_NV, teacher, tgt_N):
        log_p_NV = torch.log_softmax(teacher / self.temperature, -1)
        log_q_NV = torch.log_softmax(student_logits_NV / self.temperature, -1)
        return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1) * self._factor

    def add_gradient(self, student, teacher, tgt_N, scale, d_logits_NV):
        with torch.enable_grad():
            leaf_NV = student.logits_NV.detach().requires_grad_()
            nats_N = call(self, leaf_NV, teacher.logits_NV, tgt_N)
            d_logits_NV += torch.autograd.grad(scale * nats_N.sum(), leaf_NV)[0]
        return nats_N.detach()

    patch.setattr(WordKD, "__call__", call)
    patch.setattr(WordKD, "add_gradient", add_gradient)


def teacher_in_train_mode(patch: pytest.MonkeyPatch) -> None:
    init = FrozenTeacher.__init__

    def wrong(self, model, **settings):
        init(self, model, **settings)
        model.train()

    patch.setattr(FrozenTeacher, "__init__", wrong)


LOSSES = {"padding-proof", "cut-anywhere", "gradient against the closed form"}


@pytest.mark.parametrize(
    ("plant", "says_so", "may_say_so"),
    [
        (padding_counted, "padding-proof", LOSSES | {"high-temperature limit", "zero at equality"}),
        (temperature_on_hidden_states, "gradient against the closed form", {"high-temperature limit"}),
        (mean_of_means, "cut-anywhere", {"padding-proof"}),
        (t_squared_dropped, "gradient against the closed form", {"high-temperature limit"}),
        (swapped_kl, "gradient against the closed form", set()),
        (teacher_in_train_mode, "teacher frozen and deterministic", set()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_defect_is_named_by_its_check(material, monkeypatch, plant, says_so, may_say_so):
    plant(monkeypatch)
    found = failing(material, says_so)
    assert says_so in found
    assert found <= {says_so} | may_say_so


def gradient_of_another_loss(patch: pytest.MonkeyPatch) -> None:
    original = WordKD.add_gradient
    patch.setattr(WordKD, "add_gradient", lambda self, s, t, y, scale, d: original(self, s, t, y, 2 * scale, d))


def last_small_chunk_lost(patch: pytest.MonkeyPatch) -> None:
    original = Positions.chunks
    patch.setattr(Positions, "chunks", lambda self, size: original(self, size)[: -1 if size < 100 else None])


def pulled_at_equality(patch: pytest.MonkeyPatch) -> None:
    """Another temperature for the student than for the teacher."""
    original = WordKD.add_gradient

    def wrong(self, student, teacher, tgt_N, scale, d_logits_NV):
        return original(self, Softened(student.logits_NV / 1.1), teacher, tgt_N, scale, d_logits_NV)

    patch.setattr(WordKD, "add_gradient", wrong)


def random_state_not_resumed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "set_rng_state", lambda state: None)


def teacher_in_the_module(patch: pytest.MonkeyPatch) -> None:
    init = StudentModule.__init__

    def wrong(self, student, objective, teacher, *more, **settings):
        init(self, student, objective, teacher, *more, **settings)
        self.guide = teacher and teacher._model

    patch.setattr(StudentModule, "__init__", wrong)


@pytest.mark.parametrize(
    ("plant", "says_so"),
    [
        (gradient_of_another_loss, "gradient against finite differences"),
        (last_small_chunk_lost, "chunked equals plain"),
        (pulled_at_equality, "zero at equality"),
        (random_state_not_resumed, "resume state complete"),
        (teacher_in_the_module, "teacher frozen and deterministic"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # Lightning of the planted teacher
def test_every_other_check_catches_something_too(material, monkeypatch, plant, says_so):
    plant(monkeypatch)
    (finding,) = suite.run(material, {says_so})
    assert finding.holds is False


def permuted(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The same pieces in another order, as a vocabulary learnt elsewhere may have them."""
    tokenizer.save(folder)
    model, pieces = (folder / "joint.spm").read_bytes(), tokenizer.src_pieces
    return Tokenizer(model, model, [*pieces[:2], *reversed(pieces[2:])])


def test_a_permuted_student_vocabulary_is_named_by_the_contract(material, tmp_path):
    other = permuted(material.tokenizers["student"], tmp_path)
    wrong = dataclasses.replace(material, tokenizers={**material.tokenizers, "student": other})
    assert failing(wrong) == {"vocabulary contract"}


def test_permuted_rows_under_a_right_fingerprint_are_named_by_the_contract(material):
    """A finished student is sure of wrong words."""
    student = copy.deepcopy(material.student)
    with torch.no_grad():
        words = student.src_embedding.weight[2:-1]
        words[:] = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(1))].clone()
    assert failing(dataclasses.replace(material, student=student)) == {"vocabulary contract"}


def test_a_failure_says_what_it_means_and_leaves_with_1(folder, monkeypatch, capsys):
    t_squared_dropped(monkeypatch)
    monkeypatch.setattr(suite, "CHECKS", [entry for entry in suite.CHECKS if "closed form" in entry[0]])
    assert command(folder, *TINY) == 1
    printed = capsys.readouterr()
    assert table(printed.out)["gradient against the closed form"][0] == "NO"
    (line,) = [line for line in printed.err.splitlines() if "gradient against the closed form fails:" in line]
    assert "not what the configuration says" in line and "objectives/word_kd.py" in line
    (text,) = (path for path in (folder / "runs").rglob("check.md") if "alone" not in path.parts)
    assert "gradient against the closed form fails" in text.read_text()
