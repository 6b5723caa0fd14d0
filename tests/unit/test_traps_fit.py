"""Traps that only a whole training shows: through Lightning, its checkpoint and its resume, with planted defects."""

import pytest
import torch

from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.callbacks import Resume
from kdlab.training.module import StudentModule
from tests.traps import trap
from tests.unit.test_training import KD, PADS, V, evaluation_batches, model, rows, train

TRIPLE = Objective(
    {
        "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll()),
        "cos": WeightedTerm(1.0, "gold", "tgt_token", HiddenCosine(projection=True)),
    }
)


def after_init(patch, kind, do):
    init = kind.__init__

    def wrong(self, *args, **named):
        init(self, *args, **named)
        do(self)

    patch.setattr(kind, "__init__", wrong)


def teacher_in_the_module(patch):
    after_init(patch, StudentModule, lambda self: self.add_module("teacher", self._teacher._model.train()))


def never_put_to_eval(patch):
    after_init(patch, FrozenTeacher, lambda self: self._model.train())


def not_frozen(patch):
    after_init(patch, FrozenTeacher, lambda self: self._model.requires_grad_(True))


@trap(teacher_in_the_module, never_put_to_eval, not_frozen, paths=("fit",))
def test_t13_the_teacher_is_frozen_and_deterministic_all_through_training(path, tmp_path):
    net = model(2, dropout=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    done = train(tmp_path, max_steps=2, teacher=FrozenTeacher(net))
    done.module.train()  # as Lightning does behind every validation
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    batch = next(iter(evaluation_batches(rows(20), microbatch_tokens=1000, **PADS)))
    args = batch.src_BS, batch.src_mask_BS, batch.targets.tgt_in_RT
    assert torch.equal(net(*args).decoder_ND, net(*args).decoder_ND)


@trap(teacher_in_the_module, paths=("fit",))
def test_t29_checkpoint_and_optimizer_hold_the_student_alone(path, tmp_path):
    done = train(tmp_path, max_steps=2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)  # tensors and plain values only
    names = {f"student.{name}" for name, _ in done.module.student.named_parameters()}
    assert set(saved["state_dict"]) == names
    assert sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]) == len(names)
    assert set(done.module.parameters()) == set(done.module.student.parameters())


def projections_in_the_student(patch):
    after_init(patch, StudentModule, lambda self: self.student.add_module("maps", self.projections))


@trap(projections_in_the_student, paths=("fit",))
def test_t20_projections_train_and_are_no_part_of_the_student(path, tmp_path):
    done = train(tmp_path, max_steps=4, objective=TRIPLE)
    expected = set(model(1).state_dict())
    assert set(done.module.student.state_dict()) == set(done.validation.averaged()) == expected
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (key,) = (name for name in saved["state_dict"] if not name.startswith("student."))
    state = saved["optimizer_states"][0]
    assert key == "projections.cos.0.weight" and len(state["param_groups"][0]["params"]) == len(expected) + 1


def target_as_prefix(patch):
    """The teacher reads what it is to predict."""

    def wrong(self):
        forward = self._model.forward
        self._model.forward = lambda src, mask, tgt_in, *rest: forward(src, mask, tgt_in.roll(-1, 1), *rest)

    after_init(patch, FrozenTeacher, wrong)


def spied(net, seen):
    """The model, which notes the prefixes that it is given."""
    forward = net.forward

    def noted(src, mask, tgt_in, *rest):
        seen.append(tgt_in)
        return forward(src, mask, tgt_in, *rest)

    net.forward = noted
    return net


@trap(target_as_prefix, paths=("fit",))
def test_t24_student_and_teacher_read_the_very_same_prefixes(path, tmp_path):
    ours, theirs = [], []
    alone = Objective({"kd": KD.terms["kd"]})  # so that the teacher is asked whenever the student is
    models = {"student": spied(model(1), ours), "teacher": FrozenTeacher(spied(model(2), theirs))}
    train(tmp_path, max_steps=2, objective=alone, **models)
    assert len(ours) == len(theirs) > 2
    assert all(one is other for one, other in zip(ours, theirs, strict=True))
    assert all((prefix[:, 0] == V - 1).all() for prefix in ours)


def random_state_lost(patch):
    patch.setattr(
        Resume, "on_train_start", lambda self, trainer, module: self._metrics.forget_after(trainer.global_step)
    )


def order_lost(patch):
    patch.setattr(Resume, "load_state_dict", lambda self, state: setattr(self, "_rng", state["rng"]))


class Killed(Exception):
    """Ends a training in its middle."""


@trap(random_state_lost, order_lost, paths=("fit",))
def test_t30_a_run_stopped_in_the_middle_ends_with_the_same_weights(path, tmp_path):
    """Dropout on: the random state and the position in the data both come back."""
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    whole = train(tmp_path / "whole", max_steps=8, dropout=0.3)
    step = StudentModule.training_step

    def dies(self, batch, batch_idx):
        if self.trainer.global_step == 5:
            raise Killed
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudentModule, "training_step", dies)
        with pytest.raises(Killed):
            train(tmp_path / "parts", max_steps=8, dropout=0.3)
    parts = train(tmp_path / "parts", max_steps=8, dropout=0.3)
    assert parts.validation.history == whole.validation.history
    for name, value in whole.module.student.state_dict().items():
        assert torch.equal(parts.module.student.state_dict()[name], value)


def units_of_the_microbatch(patch):
    """The mean over microbatches of their own means."""
    forward = StudentModule._forward

    def wrong(self, batch, scales, terms, *more):
        own = {n: self.objective.weight(t) / batch.num_units(t.on, t.per) / 3 for n, t in terms.items()}
        return forward(self, batch, own, terms, *more)

    patch.setattr(StudentModule, "_forward", wrong)


@trap(units_of_the_microbatch, paths=("fit",))
def test_t3_microbatches_change_nothing(path, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = train(tmp_path / "a").module.student.state_dict()
    parts = train(tmp_path / "b", microbatch_tokens=40).module.student.state_dict()
    for name, value in whole.items():
        if not name.endswith("kv_proj.bias"):  # a key's bias has no gradient but rounding, which Adam blows up
            torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0)


def smoothed_when_validated(patch):
    nll = Nll.__init__
    patch.setattr(Nll, "__init__", lambda self, label_smoothing=0.1: nll(self, label_smoothing))


@trap(smoothed_when_validated, paths=("fit",))
def test_t11_the_nll_of_a_validation_is_not_smoothed(path, tmp_path):
    smoothed = Objective({"gold": WeightedTerm(1.0, "gold", "tgt_token", Nll(0.4))})
    done = train(tmp_path, max_steps=2, objective=smoothed)
    (batch,) = evaluation_batches(rows(20), microbatch_tokens=1000, **PADS)
    student, targets = done.module.student.eval(), batch.targets
    hidden = student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT).decoder_ND
    log_p = torch.log_softmax((hidden @ student.head().weight_VD.t())[:, : V - 1], -1)
    expected = -log_p.gather(1, targets.tgt_out_RT[targets.mask_RT][:, None]).mean()
    assert -done.validation.history[-1][1] == pytest.approx(expected.item(), rel=1e-4)
