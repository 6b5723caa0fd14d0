"""The other token terms: by hand, at equality, against closed forms and limits, with top-k teachers."""

import math

import numpy as np
import pytest
import torch

from kdlab.errors import UserError
from kdlab.objectives.distributions import Softened
from kdlab.objectives.hinton_double_alpha import HintonDoubleAlpha
from kdlab.objectives.jensen_shannon import JensenShannon
from kdlab.objectives.logits_mse import LogitsMse
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import AnalyticTerm
from kdlab.objectives.reverse_kl import ReverseKL
from kdlab.objectives.symmetric_kl import SymmetricKL
from kdlab.objectives.tempered_nll import TemperedNll
from kdlab.objectives.total_variation import TotalVariation
from kdlab.objectives.word_kd import WordKD
from kdlab.types import TopK

N, V = 7, 13
TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 10.0)
TGT = torch.tensor([0, 3, 9, 1, 4, 12, 3])
DECK = [[0.5, 1], [1, 1], [2, 2], [5, 40], [10, 200]]


def logits(seed: int, scale: float = 3.0, num: int = V) -> torch.Tensor:
    return scale * torch.randn(N, num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIVERGENCES = [
    make(temperature, *more)
    for temperature in TEMPERATURES
    for make, more in (
        (WordKD, ()),
        (ReverseKL, ()),
        (ReverseKL, (False,)),
        (SymmetricKL, ()),
        (JensenShannon, (0.5,)),
        (JensenShannon, (0.1, False)),
        (TotalVariation, ()),
        (TotalVariation, (False,)),
    )
]
OTHERS = [
    *(TemperedNll(temperature) for temperature in TEMPERATURES),
    TemperedNll(3.0, False),
    HintonDoubleAlpha(2.0, 0.3),
    WordKD(5.0, False, weight_at=DECK),
]


KINDS = [(term, kind) for term in DIVERGENCES + OTHERS for kind in ("dense", 1, 5, V)]
KINDS += [(LogitsMse(), "dense")]  # with a top-k teacher it is refused, see below


@pytest.mark.parametrize(("term", "kind"), KINDS, ids=str)
def test_t2_gradient_is_that_of_the_reported_value(term, kind):
    """Central differences in a random direction, and the closed form where a term has one."""
    student, guide = logits(1).requires_grad_(), logits(2)
    teacher = guide if kind == "dense" else TopK.of(guide, kind, TEMPERATURES)
    nats = term(student, teacher, TGT)
    (gradient,) = torch.autograd.grad(nats.sum(), student)
    direction, eps = logits(3, 1.0), 1e-6
    above, below = (term(student.detach() + sign * eps * direction, teacher, TGT).sum() for sign in (1, -1))
    assert float(above - below) / (2 * eps) == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-8)
    if isinstance(term, AnalyticTerm):
        found = torch.ones_like(gradient)
        softened = Softened(guide) if kind == "dense" else teacher
        reported = term.add_gradient(Softened(student.detach()), softened, TGT, 0.3, found)
        torch.testing.assert_close(reported, nats.detach(), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found, 1.0 + 0.3 * gradient, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("term", DIVERGENCES, ids=str)
def test_t9_a_divergence_is_zero_at_equality_and_positive_elsewhere(term):
    student, guide = logits(1), logits(2)
    for k in (None, 1, 5, V):
        teacher, itself = ((z if k is None else TopK.of(z, k, TEMPERATURES)) for z in (guide, student))
        assert (term(student, teacher, TGT) > 0).all()
        assert term(student, itself, TGT).abs().max() < 1e-11
        shifted = term(student, itself, TGT) - term(student + 5.0, itself, TGT)  # a shift changes no probability
        assert shifted.abs().max() < 1e-11


@pytest.mark.parametrize("term", DIVERGENCES, ids=str)
def test_t25_a_divergence_of_top_k_never_exceeds_that_of_all(term):
    student, guide = logits(1), logits(2)
    dense, last = term(student, guide, TGT), torch.zeros(N, dtype=torch.float64)
    for k in (1, 2, 5, V - 1, V):
        now = term(student, TopK.of(guide, k, TEMPERATURES), TGT)
        assert (now >= last - 1e-12).all() and (now <= dense + 1e-12).all()
        last = now
    torch.testing.assert_close(last, dense, atol=1e-12, rtol=1e-12)


P, Q = torch.tensor([[0.5, 0.25, 0.25]]).log().double(), torch.tensor([[0.8, 0.1, 0.1]]).log().double()
FORWARD = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(2.5)  # teacher P first: 0.2231
REVERSE = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.4)  # student Q first: 0.1927
JS = 0.5 * (0.5 * math.log(0.5 / 0.65) + 0.5 * math.log(0.25 / 0.175))  # both sides to (0.65, 0.175, 0.175)
JS += 0.5 * (0.8 * math.log(0.8 / 0.65) + 0.2 * math.log(0.1 / 0.175))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (WordKD(1.0), FORWARD),
        (WordKD(1.0, form="cross_entropy"), FORWARD + 1.5 * math.log(2.0)),  # and the teacher's entropy
        (ReverseKL(1.0), REVERSE),
        (SymmetricKL(1.0), (FORWARD + REVERSE) / 2),
        (JensenShannon(1.0), JS),
        (TotalVariation(1.0), 0.3),
        (Nll(), -math.log(0.8)),
        (TemperedNll(1.0), -math.log(0.8)),
        # sqrt(0.8) of sqrt(0.8) + 2 sqrt(0.1), times T
        (TemperedNll(2.0), -2 * math.log(0.8**0.5 / (0.8**0.5 + 2 * 0.1**0.5))),
        # log 0.8 - log 0.5 - its mean against the others': d = (0.47, -0.916, -0.916), centred (0.924, -0.462, -0.462)
        (LogitsMse(), (math.log(1.6) - math.log(0.4)) ** 2 / 9),
    ],
    ids=str,
)
def test_t8_values_by_hand(term, expected):
    assert term(Q, P, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)
    assert round(FORWARD, 4) == 0.2231 and round(REVERSE, 4) == 0.1927


def test_jensen_shannon_tends_to_each_kl():
    student, guide = logits(1), logits(2)
    share = 1e-6
    near_forward = JensenShannon(2.0, share)(student, guide, TGT) / share
    near_reverse = JensenShannon(2.0, 1 - share)(student, guide, TGT) / share
    torch.testing.assert_close(near_forward, WordKD(2.0)(student, guide, TGT), rtol=1e-3, atol=0)
    torch.testing.assert_close(near_reverse, ReverseKL(2.0)(student, guide, TGT), rtol=1e-3, atol=0)
    bound = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert JensenShannon(1.0, 0.3)(100 * student, 100 * guide, TGT).max() < bound + 1e-12
    torch.testing.assert_close(  # exchanging the sides exchanges the shares
        JensenShannon(2.0, 0.3)(student, guide, TGT), JensenShannon(2.0, 0.7)(guide, student, TGT)
    )


@pytest.mark.parametrize("num", [10, 1000])
def test_t1_high_temperatures_match_centred_logits(num):
    """The deck's F10, whose "=" is a limit: dL/dz = (z - v) / (V T**2), centred; the relative errors are known ones."""
    expected = {10: (3.9e-2, 4.0e-3, 4.0e-4), 1000: (7.2e-2, 7.3e-3, 7.3e-4)}[num]
    generator = np.random.default_rng(0)
    student, guide = (torch.from_numpy(generator.normal(size=num))[None] for _ in range(2))
    student.requires_grad_()
    mse = LogitsMse()(student, guide, TGT[:1])
    (limit,) = torch.autograd.grad(mse.sum(), student)
    difference = (student - guide).detach()
    torch.testing.assert_close(limit, (difference - difference.mean()) / num)
    for temperature, error in zip((10.0, 100.0, 1000.0), expected, strict=True):
        for make in (WordKD, ReverseKL, SymmetricKL):
            value = make(temperature)(student, guide, TGT[:1])
            (gradient,) = torch.autograd.grad(value.sum(), student)
            found = float((gradient - limit).norm() / limit.norm())
            assert found == pytest.approx(error, rel=0.02) if make is WordKD else found < 3 * error
            assert value.item() / mse.item() == pytest.approx(1.0, abs=3 * error)
    shifted = (student.detach() + 3.0).requires_grad_()  # uncentred, the difference would stay
    (again,) = torch.autograd.grad(WordKD(1000.0)(shifted, guide, TGT[:1]).sum(), shifted)
    assert float((again - limit).norm() / limit.norm()) < 1e-3
    assert float(((difference + 3.0) / num - limit).norm() / limit.norm()) > 1.0


def test_total_variation_keeps_its_size_with_the_factor_t():
    student, guide = logits(1), logits(2)
    hot = [TotalVariation(temperature)(student, guide, TGT).mean() for temperature in (100.0, 1000.0)]
    assert float(hot[0] / hot[1]) == pytest.approx(1.0, abs=0.05)


def test_tempering_has_the_gradient_of_softened_probabilities():
    for temperature in TEMPERATURES:
        student = logits(1).requires_grad_()
        (gradient,) = torch.autograd.grad(TemperedNll(temperature)(student, None, TGT).sum(), student)
        onehot = torch.nn.functional.one_hot(TGT, V)
        torch.testing.assert_close(gradient, torch.softmax(student.detach() / temperature, -1) - onehot)
    torch.testing.assert_close(TemperedNll(1.0)(logits(1), None, TGT), Nll()(logits(1), None, TGT))
    halved = TemperedNll(2.0, times_temperature=False)(logits(1), None, TGT)
    torch.testing.assert_close(2 * halved, TemperedNll(2.0)(logits(1), None, TGT))


def test_the_printed_double_alpha_has_its_three_shares():
    assert HintonDoubleAlpha(2.0, 0.5).shares == (0.25, 0.25, 0.5)
    student, guide = logits(1), logits(2)
    soft = WordKD(2.0, False, "cross_entropy")(student, guide, TGT)
    hard = TemperedNll(2.0, False)(student, guide, TGT)
    nll = Nll()(student, guide, TGT)
    torch.testing.assert_close(HintonDoubleAlpha(2.0)(student, guide, TGT), 0.25 * soft + 0.25 * hard + 0.5 * nll)
    torch.testing.assert_close(HintonDoubleAlpha(2.0, 0.0)(student, guide, TGT), nll)
    torch.testing.assert_close(HintonDoubleAlpha(2.0, 1.0)(student, guide, TGT), soft)


def test_the_decks_weights_multiply_the_term():
    student, guide = logits(1), logits(2)
    for temperature, weight in DECK:
        plain = WordKD(float(temperature), t_squared=False)(student, guide, TGT)
        weighed = WordKD(float(temperature), t_squared=False, weight_at=DECK)
        torch.testing.assert_close(weighed(student, guide, TGT), weight * plain)
        both = WordKD(float(temperature), weight_at=DECK)
        torch.testing.assert_close(both(student, guide, TGT), weight * temperature**2 * plain)
    assert WordKD(5.0, False, weight_at=DECK).formula().startswith("40 * KL(teacher || student)")
    with pytest.raises(UserError, match=r"temperature=3 has no weight .* choose one of 0.5, 1, 2, 5, 10"):
        WordKD(3.0, weight_at=DECK)(student, guide, TGT)


def test_d8_under_adam_a_factor_of_the_whole_loss_changes_nothing():
    """So the deck's KD-only rows cannot depend on its weights, only those beside an NLL."""
    ends = []
    for factor in (1.0, 200.0):
        student = logits(1).requires_grad_()
        adam = torch.optim.Adam([student], lr=0.05, eps=1e-12)
        for _ in range(50):
            adam.zero_grad()
            (factor * WordKD(10.0, t_squared=False)(student, logits(2), TGT)).mean().backward()
            adam.step()
        ends.append(student.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=0)
    assert (ends[0] - logits(1)).abs().max() > 0.1


def test_t25_logits_of_a_top_k_teacher_are_refused():
    top = TopK.of(logits(2), 4, TEMPERATURES)
    for call in (
        lambda: LogitsMse()(logits(1), top, TGT),
        lambda: LogitsMse().add_gradient(Softened(logits(1)), top, TGT, 1.0, torch.zeros(N, V).double()),
    ):
        with pytest.raises(UserError, match="cache has 4 of them.*teacher_cache=hidden.*objective=word_kd"):
            call()
