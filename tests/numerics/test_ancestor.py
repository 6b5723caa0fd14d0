"""The deck code's defects, each measured against the sound term: A1 the bias, A2 padding, A3 and A4 the factor."""

import pytest
import torch

from kdlab.errors import UserError
from kdlab.objectives.ancestor import Ancestor
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import Side, reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.types import Head, Targets, TopK

N, V, D = 6, 9, 4
TGT = torch.zeros(N, dtype=torch.long)


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize(("temperature", "coefficient"), [(0.5, 0.375), (1.0, 0.75), (2.0, 2.25), (4.0, 8.25)])
def test_without_a_bias_it_is_kl_with_the_ancestors_factor(temperature, coefficient, weight):
    """The coefficients are those of weight 0.5, replayed from the order of the ancestor's own calls."""
    student = logits(1).requires_grad_()
    plain = WordKD(temperature, t_squared=False)(student, logits(2), TGT)
    term = weight * Ancestor(temperature, weight)(student, logits(2), TGT)
    torch.testing.assert_close(term, (weight * temperature**2 + weight**2) * plain)
    if weight == 0.5:
        torch.testing.assert_close(term, coefficient * plain)


def test_a_bias_stays_at_full_size():
    """logits = W h + b; the ancestor's are W (h / T) + b."""
    generator = torch.Generator().manual_seed(3)
    weight, hidden, other = (torch.randn(*shape, generator=generator) for shape in ((V, D), (N, D), (N, D)))
    ours, theirs = (torch.randn(V, generator=generator) for _ in range(2))
    term = Ancestor(4.0, 1.0)
    got = term.biased(hidden @ weight.T + ours, other @ weight.T + theirs, ours, theirs)
    expected = WordKD(1.0)(hidden @ weight.T / 4 + ours, other @ weight.T / 4 + theirs, TGT)
    torch.testing.assert_close(got, 17 * expected, atol=1e-4, rtol=1e-5)
    right = WordKD(4.0, t_squared=False)(hidden @ weight.T + ours, other @ weight.T + theirs, TGT)
    assert float((got / 17 - right).abs().mean()) > 0.1  # nats


def sides(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Side]:
    generator = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (12, V + 1))
    biases = [torch.randn(V + 1, generator=generator, dtype=torch.float64) if bias else None for _ in range(2)]
    teacher = Side(torch.randn(12, D, generator=generator).double(), Head(weight.flip(1), biases[1], V))
    return hidden, weight, biases[0], teacher


TARGETS = Targets(  # 3 rows of 4 positions, 7 of them real
    torch.arange(3),
    torch.tensor([False, True, False]),
    torch.zeros(3, 4, dtype=torch.long),
    torch.arange(12).view(3, 4) % V,
    torch.arange(4) < torch.tensor([[4], [2], [1]]),
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_chunks_equal_plain_autograd_with_the_bias_gradient(chunk_size, bias):
    """The head's bias gets T times what the logits hand down, for it is not divided."""
    terms = {
        "nll": WeightedTerm(1.0, "all", "tgt_token", Nll()),
        "kd": WeightedTerm(0.5, "all", "position", Ancestor(4.0, 0.5)),
    }
    assert Objective(terms).counts_padding
    results = []
    for plain in (True, False):
        hidden, weight, bias_V, teacher = sides(bias)
        leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias_V) if leaf is not None]
        side = Side(hidden, Head(weight, bias_V, V))
        scales = {"nll": 1.0 / 7, "kd": 0.5 / 12}
        got = reduce(terms, scales, TARGETS, side, teacher, chunk_size=chunk_size, plain=plain, padded=True)
        results.append([got.loss.detach(), *got.sums.values(), *torch.autograd.grad(got.loss, leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padding_is_counted_for_it_and_for_nothing_else():
    terms = {
        "nll": WeightedTerm(1.0, "all", "tgt_token", Nll()),
        "kd": WeightedTerm(1.0, "all", "position", Ancestor(2.0, 1.0)),
    }
    hidden, weight, bias_V, teacher = sides(False)
    side = Side(hidden, Head(weight, bias_V, V))
    got = reduce(terms, {"nll": 1.0, "kd": 1.0}, TARGETS, side, teacher, chunk_size=5, padded=True)
    ours, theirs = (hidden @ weight.T)[:, :V], (teacher.hidden_ND @ teacher.head.weight_VD.T)[:, :V]
    everywhere = Ancestor(2.0, 1.0)(ours, theirs, torch.zeros(12, dtype=torch.long)).sum()
    real = TARGETS.mask_RT.flatten()
    torch.testing.assert_close(got.sums["kd"], everywhere)
    torch.testing.assert_close(got.sums["nll"], Nll()(ours[real], None, TARGETS.tgt_out_RT.flatten()[real]).sum())


def test_top_k_is_refused_and_the_formula_says_what_it_is():
    with pytest.raises(UserError, match="objective=ancestor divides hidden states"):
        Ancestor(2.0, 1.0)(logits(1), TopK.of(logits(2), 3, (2.0,)), TGT)
    assert Ancestor(2.0, 0.5).formula().startswith("ANCESTOR, defects for comparison: (4 + 0.5) * KL")
