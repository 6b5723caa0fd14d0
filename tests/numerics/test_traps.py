"""Traps of single terms on every path; each check is also run against planted defects, which it must catch."""

import itertools
import math

import pytest
import torch

from kdlab.objectives import reduce
from kdlab.objectives.ancestor import Ancestor
from kdlab.objectives.distributions import Softened, log_probs
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.logits_mse import LogitsMse
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reverse_kl import ReverseKL
from kdlab.objectives.word_kd import WordKD
from kdlab.types import Batch, Head, Targets
from tests.numerics import step as steps
from tests.numerics.step import PAD, REAL, TGT, by_hand, goal, model, step
from tests.traps import PATHS, TOP_K, trap


def wrong_kd(patch, nats):
    """Puts another formula into WordKD: nats(term, student logits, teacher), its gradient by autograd."""

    def add_gradient(self, student, teacher, tgt_N, scale, d_logits_NV):
        with torch.enable_grad():
            leaf = student.logits_NV.detach().requires_grad_()
            found = self(leaf, teacher.logits_NV if isinstance(teacher, Softened) else teacher, tgt_N)
            d_logits_NV += torch.autograd.grad(scale * found.sum(), leaf)[0]
        return found.detach()

    def call(self, student, teacher, tgt_N):
        return nats(self, student, teacher) + 0.0 * student.sum(-1)  # there is a gradient, be it of nothing

    patch.setattr(WordKD, "__call__", call)
    patch.setattr(WordKD, "add_gradient", add_gradient)


def kl(term, student, teacher):
    log_p, log_q = log_probs(student, teacher, term.temperature)
    return term.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def only_kd(temperature=steps.TEMPERATURE):
    return goal(0.0, 0.0, 1.0, temperature=temperature)


def t_squared_dropped(patch):
    patch.setattr(WordKD, "_factor", 1.0)


@trap(t_squared_dropped, paths=(*PATHS, TOP_K))
def test_t1_at_a_high_temperature_kd_is_the_distance_of_logits(path):
    mse = Objective({"kd": WeightedTerm(1.0, "all", "tgt_token", LogitsMse())})
    limit = step("chunked" if path == TOP_K else path, mse)
    assert step(path, only_kd(100.0)).distance(limit) < 0.05


def only_the_value_is_scaled(patch):
    wrong_kd(patch, lambda *a: kl(*a) / 4 + (kl(*a) * 0.75).detach())


def weight_in_the_value_alone(patch):
    wrong_kd(patch, lambda *a: kl(*a) + 0.3 * kl(*a).detach())


@trap(only_the_value_is_scaled, weight_in_the_value_alone, paths=(*PATHS, TOP_K))
def test_t2_the_reported_loss_falls_as_its_gradient_says(path):
    """Central differences along the gradient, whose slope is the gradient's length."""
    eps = 0.05 if path == "bf16" else 0.01
    for temperature, weights in ((0.5, (1.0, 0.7, 0.5)), (2.0, (0.0, 0.0, 3.0)), (5.0, (1.0, 0.0, 1.0))):
        student, objective = model(1), goal(*weights, temperature=temperature)
        gradient = step(path, objective, student=student).gradient
        length, moved = float(gradient.norm()), []
        for sign in (1, -2):
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(
                    torch.nn.utils.parameters_to_vector(student.parameters()) + sign * eps * gradient / length,
                    student.parameters(),
                )
            moved.append(step(path, objective, student=student).loss)
        assert (moved[0] - moved[1]) / (2 * eps) == pytest.approx(length, rel=0.1 if path == "bf16" else 0.01)


def divided_by_the_vocabulary(patch):
    wrong_kd(patch, lambda *a: kl(*a) / REAL)


def divided_by_rows(patch):
    patch.setattr(Batch, "num_units", lambda self, on, per: int(self.targets.origin_R(on).sum()))


@trap(divided_by_the_vocabulary, divided_by_rows)
def test_t4_equal_chances_cost_log_v_per_token(path):
    """NLL of a student that knows nothing, and KL to it: log V - H(teacher), whose mean is taken by hand."""
    student = model(1)
    with torch.no_grad():
        student.src_embedding.weight[:PAD] *= 1e-4  # what it reads is scaled too, and normed again behind
        student.softmax_bias.zero_()
    got = step(path, goal(1.0, 1.0, 1.0, temperature=1.0), student=student)
    units = {"gold": 0, "pseudo": 0, "kd": 0}
    for row, tgt in enumerate(TGT):
        units["pseudo" if steps.IS_PSEUDO[row] else "gold"] += len(tgt)
        units["kd"] += len(tgt)
    entropy = 0.0
    net = model(2)
    for row in steps.WHOLE[0]:
        with torch.no_grad():
            z = steps.alone(net, row) @ net.src_embedding.weight.t() + net.softmax_bias
        p = torch.softmax(z[:, :REAL], -1)
        entropy -= float((p * p.log()).sum())
    expected = 3 * math.log(REAL) - entropy / units["kd"]
    assert got.loss == pytest.approx(expected, rel=0.01)


def softmax_over_positions(patch):
    for name in ("softmax", "log_softmax"):
        right = getattr(torch, name)

        def wrong(x, dim, right=right):
            return right(x, dim=0 if x.shape[-1] == REAL else dim)

        patch.setattr(torch, name, wrong)


@trap(softmax_over_positions)
def test_t5_a_sentence_does_not_depend_on_its_neighbours(path):
    whole = step(path)
    alone = step(path, cut=[[row] for row in steps.WHOLE[0]])
    assert alone.is_near(whole, path) and math.isfinite(whole.loss)


def kl_swapped(patch):
    for name in ("__call__", "add_gradient"):
        patch.setattr(WordKD, name, getattr(ReverseKL, name))


@trap(kl_swapped, paths=(*PATHS, TOP_K))
def test_t8_the_divergence_is_the_teachers_from_the_student(path):
    assert step(path, only_kd()).is_near(by_hand(gold=0, pseudo=0, kd=1), path)


def cross_entropy_for_kl(patch):
    def nats(term, student, teacher):
        log_p, log_q = log_probs(student, teacher, term.temperature)
        return -(term.temperature**2) * (log_p.exp() * log_q).sum(-1)

    wrong_kd(patch, nats)


@trap(cross_entropy_for_kl, paths=(*PATHS, TOP_K))
def test_t9_a_student_that_is_the_teacher_has_no_kd_loss(path):
    itself = model(1)
    got = step(path, only_kd(), student=itself, teacher=itself)
    assert abs(got.loss) < 1e-6 and float(got.gradient.norm()) < (1e-3 if path == "bf16" else 1e-5)


def student_detached(patch):
    wrong_kd(patch, lambda term, student, teacher: kl(term, student.detach(), teacher))


def teacher_ignored(patch):
    wrong_kd(patch, lambda term, student, teacher: kl(term, student, torch.zeros_like(student)))


@trap(student_detached, teacher_ignored, paths=(*PATHS, TOP_K))
def test_t10_another_teacher_is_another_gradient(path):
    one, other = (step(path, only_kd(), teacher=model(seed)) for seed in (2, 3))
    assert float(one.gradient.norm()) > 1e-3
    assert one.distance(other) > 0.1


def smoothed_teacher(patch):
    def nats(term, student, teacher):
        log_p, log_q = log_probs(student, teacher, term.temperature)
        p = (1 - steps.SMOOTHING) * log_p.exp() + steps.SMOOTHING / REAL
        return term.temperature**2 * (p * (p.log() - log_q)).sum(-1)

    wrong_kd(patch, nats)


def smoothing_left_out(patch):
    patch.setattr(Nll, "__init__", lambda self, label_smoothing=0.0: object.__setattr__(self, "label_smoothing", 0.0))


@trap(smoothed_teacher, smoothing_left_out)
def test_t11_label_smoothing_is_in_the_gold_nll_and_nowhere_else(path):
    assert step(path).is_near(by_hand(), path)


def logits_stay_bf16(patch):
    patch.setattr(torch, "promote_types", lambda one, other: one)


@trap(logits_stay_bf16, paths=("bf16",))
def test_t16_a_small_divergence_survives_bf16(path):
    """Hidden states, head and their product are bf16; softmax and sums are not."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(201, 32, generator=generator).bfloat16() / 4
    ours = torch.randn(500, 32, generator=generator).bfloat16()
    theirs = (ours + 0.03 * torch.randn(500, 32, generator=generator)).bfloat16()
    log_q, log_p = (torch.log_softmax(h.double() @ weight.double().t()[:, :200], -1) for h in (ours, theirs))
    exact = float((log_p.exp() * (log_p - log_q)).sum())
    terms = {"kd": WeightedTerm(1.0, "all", "tgt_token", WordKD(1.0))}
    ids, head = torch.zeros(1, 500, dtype=torch.long), Head(weight, None, 200)
    targets = Targets(torch.zeros(1).long(), torch.zeros(1).bool(), ids, ids, torch.ones(1, 500).bool())
    side = reduce.Side(ours.requires_grad_(), head)
    for plain in (True, False):
        got = reduce.reduce(terms, {"kd": 1.0}, targets, side, reduce.Side(theirs, head), chunk_size=100, plain=plain)
        assert exact / 500 < 5e-3
        assert float(got.sums["kd"]) == pytest.approx(exact, rel=0.2)


def weight_twice(patch):
    scales = Objective.scales
    patch.setattr(
        Objective,
        "scales",
        lambda self, units: {n: s * self.terms[n].weight for n, s in scales(self, units).items()},
    )


def weights_that_sum_to_one(patch):
    """Alpha on KD, and 1 - alpha on all else, whatever was asked for."""

    def weight(self, term):
        return term.weight if term is self.terms["kd"] else 1.0 - self.terms["kd"].weight

    patch.setattr(Objective, "weight", weight)


@trap(weight_twice, weights_that_sum_to_one)
def test_t17_each_weight_weighs_its_own_term_alone(path):
    """The grid of on and off is the sum of its parts; a weight of 3 is three times the part; 0 is not computed."""
    makers = {"nll": Nll(), "kd": WordKD(2.0)} | ({} if path == "cached" else {"cos": HiddenCosine()})

    def weighed(**weights):
        terms = {name: WeightedTerm(w, "all", "tgt_token", makers[name]) for name, w in weights.items()}
        return step(path, Objective({"kd": WeightedTerm(0.0, "all", "tgt_token", Never()), **terms})).gradient

    parts = {name: weighed(**{name: 1.0}) for name in makers}
    near = 0.02 if path == "bf16" else 1e-5
    for on in itertools.product((0.0, 1.0), repeat=len(makers)):
        weights = dict(zip(makers, on, strict=True))
        if sum(on) > 1:
            expected = torch.stack([parts[name] * weight for name, weight in weights.items()]).sum(0)
            assert float((weighed(**weights) - expected).norm() / expected.norm()) < near
    for name, part in parts.items():
        assert float((weighed(**{name: 3.0}) - 3 * part).norm() / part.norm()) < near


class Never(WordKD):
    """A term that must not be computed."""

    def __init__(self):
        super().__init__(1.0)

    def __call__(self, *args):
        raise AssertionError("a term of weight 0 was computed")

    add_gradient = __call__


class OnHiddenStates(Ancestor):
    """KL with the temperature on hidden states, all else right."""

    counts_padding = False

    def __init__(self, temperature):
        super().__init__(temperature, 0.0)


def temperature_on_hidden_states(patch):
    patch.setattr(steps, "KD", OnHiddenStates)


@trap(temperature_on_hidden_states)
def test_t18_a_bias_of_the_head_is_tempered_too(path):
    assert step(path, only_kd()).is_near(by_hand(gold=0, pseudo=0, kd=1), path)
