"""Closed-form gradients against autograd, top-k teachers against dense ones, hidden terms over the right positions."""

import pytest
import torch

from kdlab.errors import UserError
from kdlab.objectives.distributions import Softened, log_probs
from kdlab.objectives.hidden import projections, reduce_hidden
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.hidden_mse import HiddenMse
from kdlab.objectives.layer_pairs import layer_pairs
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import AnalyticTerm, HiddenTerm, WeightedTerm
from kdlab.objectives.word_kd import WordKD
from kdlab.types import Batch, ModelOutput, Targets, TopK

N, V = 7, 13
TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 10.0)


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TGT = torch.tensor([0, 3, 9, 1, 4, 12, 3])
TERMS = [Nll(), Nll(0.2)] + [
    WordKD(temperature, t_squared, form)
    for temperature in TEMPERATURES
    for t_squared in (True, False)
    for form in ("kl", "cross_entropy")
]


@pytest.mark.parametrize("teacher", ["dense", 1, 5, V])
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_t26_closed_forms_equal_autograd(term, teacher):
    assert isinstance(term, AnalyticTerm)
    student, guide = logits(1).requires_grad_(), logits(2)
    if teacher != "dense":
        guide = TopK.of(guide, teacher, TEMPERATURES)
    expected = term(student, guide, TGT)
    (gradient,) = torch.autograd.grad(0.3 * expected.sum(), student)
    found = torch.zeros_like(gradient)
    softened = Softened(guide) if teacher == "dense" else guide
    nats = term.add_gradient(Softened(student.detach()), softened, TGT, 0.3, found)
    torch.testing.assert_close(nats, expected.detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found, gradient, atol=1e-12, rtol=1e-12)


def test_terms_of_one_chunk_share_a_distribution_without_spoiling_it():
    student, guide = Softened(logits(1)), TopK.of(logits(2), 4, TEMPERATURES)
    before = student.at(1.0)[0].clone()
    once = torch.zeros(N, V, dtype=torch.float64)
    WordKD(1.0).add_gradient(student, guide, TGT, 1.0, once)
    assert torch.equal(student.at(1.0)[0], before)
    twice = torch.zeros_like(once)
    for _ in range(2):
        WordKD(1.0).add_gradient(student, guide, TGT, 0.5, twice)
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_t25_top_k_of_the_whole_vocabulary_is_the_dense_teacher(temperature):
    student, guide = logits(1), logits(2)
    dense = WordKD(temperature)(student, guide, TGT)
    torch.testing.assert_close(WordKD(temperature)(student, TopK.of(guide, V, TEMPERATURES), TGT), dense)
    last = torch.zeros(N, dtype=torch.float64)
    for k in (1, 2, 5, V - 1, V):  # more outcomes can only be told apart better
        kl = WordKD(temperature)(student, TopK.of(guide, k, TEMPERATURES), TGT)
        assert (kl >= last - 1e-12).all() and (kl <= dense + 1e-12).all()
        last = kl
    itself = TopK.of(student, 3, TEMPERATURES)
    assert WordKD(temperature)(student, itself, TGT).abs().max() < 1e-12


def test_t25_a_temperature_without_its_tail_is_refused():
    with pytest.raises(UserError, match=r"temperature 3, but the teacher's top-k cache .* 0.5, 1, 2, 5, 10 alone"):
        WordKD(3.0)(logits(1), TopK.of(logits(2), 3, TEMPERATURES), TGT)


def test_t25_a_peaked_teacher_whose_tail_vanishes_is_no_nan():
    peaked = torch.zeros(N, V)
    peaked[:, 2] = 2e4
    student = logits(1).float().requires_grad_()
    nats = WordKD(1.0)(student, TopK.of(peaked, 2, (1.0,)), TGT)
    torch.testing.assert_close(nats, -torch.log_softmax(student, -1)[:, 2])
    assert torch.autograd.grad(nats.sum(), student)[0].isfinite().all()


def test_outcomes_of_both_sides_sum_to_one():
    for guide in (logits(2), TopK.of(logits(2), 4, TEMPERATURES)):
        for side in log_probs(logits(1), guide, 2.0):
            torch.testing.assert_close(side.exp().sum(-1), torch.ones(N, dtype=torch.float64))


def test_under_adam_a_factor_on_kd_alone_changes_no_step():
    """The deck's weights of 1 to 200 cannot act on its KD-only rows: Adam divides them out."""
    ended = []
    for weight in (1.0, 200.0):
        student = logits(1).requires_grad_()
        adam = torch.optim.Adam([student], lr=1e-2, betas=(0.9, 0.98), eps=1e-9)
        for _ in range(50):
            adam.zero_grad()
            (weight * WordKD(10.0)(student, logits(2), TGT).mean()).backward()
            adam.step()
        ended.append(student.detach())
    assert (ended[0] - logits(1)).abs().max() > 0.1
    torch.testing.assert_close(ended[0], ended[1], atol=1e-5, rtol=0)


# --- hidden terms ----------------------------------------------------------------------------------------------


def test_t19_cosine_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 2.0], [1.0, 2.0]]), torch.tensor([[4.0, 3.0], [2.0, 4.0], [-1.0, -2.0]])
    torch.testing.assert_close(HiddenCosine()(a, b), torch.tensor([0.04, 0.0, 2.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(HiddenCosine()(5 * a, b), HiddenCosine()(a, b))
    torch.testing.assert_close(HiddenMse()(a, b), torch.tensor([1.0, 2.5, 10.0]))


def batch(extra: int = 0) -> Batch:
    """Two sources of 3 and 1 tokens; rows: gold of source 0 (2 tokens), gold of 1 (3), pseudo of 0 (1)."""
    S, T = 3 + extra, 3 + extra
    src_mask = torch.arange(S) < torch.tensor([3, 1])[:, None]
    mask = torch.arange(T) < torch.tensor([2, 3, 1])[:, None]
    targets = Targets(
        torch.tensor([0, 1, 0]), torch.tensor([False, False, True]), *[torch.zeros(3, T).long()] * 2, mask
    )
    return Batch(torch.arange(2), torch.zeros(2, S).long(), src_mask, targets)


def output(seed: int, width: int, layers: tuple[int, int] = (2, 2)) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)

    def states(num: int, count: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(count, width, generator=generator, requires_grad=True) for _ in range(num))

    encoder, decoder = states(layers[0], 4), states(layers[1], 6)
    return ModelOutput(decoder[-1], encoder, decoder)


@pytest.mark.parametrize(
    ("stack", "on", "places"),
    [
        ("decoder", "gold", [0, 1, 2, 3, 4]),
        ("decoder", "pseudo", [5]),
        ("decoder", "all", [0, 1, 2, 3, 4, 5]),
        ("encoder", "gold", [0, 1, 2, 3]),
        ("encoder", "pseudo", [0, 1, 2]),
        ("encoder", "all", [0, 1, 2, 3, 0, 1, 2]),  # a source with two rows counts twice, as its units do
    ],
)
def test_t19_hidden_terms_see_the_real_positions_of_their_rows(stack, on, places):
    student, teacher, term = output(1, 4), output(2, 4), HiddenMse(stack)
    weighted = {"mse": WeightedTerm(1.0, on, "src_token" if stack == "encoder" else "tgt_token", term)}
    ours, theirs = (getattr(side, f"{stack}_layers")[-1] for side in (student, teacher))
    expected = term(ours, theirs)[places].sum()
    for padding in (0, 3):
        got = reduce_hidden(weighted, {"mse": 0.5}, batch(padding), student, teacher, projections({}, 4, 4, {}))
        torch.testing.assert_close(got.sums["mse"], expected.detach())
        torch.testing.assert_close(got.loss, 0.5 * expected)
    assert len(places) == batch().num_units(on, weighted["mse"].per)
    got.loss.backward()
    assert ours.grad is not None


def test_t20_other_widths_need_a_projection_and_it_learns():
    term = HiddenCosine("decoder", "spread")
    with pytest.raises(UserError, match=r"width 4, the teacher's 6, so term 'cos' .*terms.cos.term.projection=true"):
        projections({"cos": WeightedTerm(1.0, "all", "tgt_token", term)}, 4, 6, {"decoder": (2, 2)})
    weighted = {"cos": WeightedTerm(1.0, "all", "tgt_token", HiddenCosine("decoder", "spread", True))}
    maps = projections(weighted, 4, 6, {"decoder": (2, 2)})
    assert [tuple(p.shape) for p in maps.parameters()] == [(6, 4), (6, 4)]
    got = reduce_hidden(weighted, {"cos": 1.0}, batch(), output(1, 4), output(2, 6), maps)
    got.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in maps.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (3, 6, [(0, 1), (1, 3), (2, 5)]),
        (6, 12, [(i, 2 * i + 1) for i in range(6)]),
        (3, 12, [(0, 3), (1, 7), (2, 11)]),
        (6, 24, [(i, 4 * i + 3) for i in range(6)]),
        (2, 5, [(0, 1), (1, 4)]),
        (3, 2, [(0, 0), (1, 0), (2, 1)]),
    ],
)
def test_t22_spread_pairs_every_student_layer_and_ends_with_both_last(student, teacher, pairs):
    assert layer_pairs("spread", student, teacher) == pairs
    assert layer_pairs("last", student, teacher) == [(student - 1, teacher - 1)]


@pytest.mark.parametrize(("layers", "message"), [("first", "no rule"), ([[0, 6]], "teacher has layers 0 to 5")])
def test_t22_unknown_layers_are_refused(layers, message):
    with pytest.raises(UserError, match=message):
        HiddenCosine(layers=layers).pairs(3, 6)
    assert isinstance(HiddenCosine(), HiddenTerm) and not isinstance(WordKD(1.0), HiddenTerm)
