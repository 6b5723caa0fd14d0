"""The terms against closed forms; the reduce against plain autograd, padding and every way to cut a step."""

import math

import pytest
import torch

from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import Side, reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.types import Batch, Head, Targets

V, D = 11, 6


def logits(seed: int, n: int = 5, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(n, V - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TGT = torch.tensor([0, 3, 9, 1, 4])


def test_nll_of_uniform_logits_is_log_of_the_vocabulary():
    uniform = torch.zeros(5, V - 1)
    torch.testing.assert_close(Nll()(uniform, None, TGT), torch.full((5,), math.log(V - 1)))
    torch.testing.assert_close(Nll(label_smoothing=0.3)(uniform, None, TGT), torch.full((5,), math.log(V - 1)))


def test_t11_label_smoothing_formula():
    z, e = logits(1), 0.1
    log_p = torch.log_softmax(z, -1)
    expected = (1 - e) * -log_p[torch.arange(5), TGT] - e * log_p.mean(-1)
    torch.testing.assert_close(Nll(label_smoothing=e)(z, None, TGT), expected)


def test_t8_kl_by_hand_and_its_direction():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.8, 0.1, 0.1]])
    forward = 0.5 * math.log(0.5 / 0.8) + 2 * 0.25 * math.log(0.25 / 0.1)  # teacher first: 0.2231 nats
    got = WordKD(temperature=1.0)(q.log(), p.log(), torch.tensor([0]))
    assert got.item() == pytest.approx(forward, abs=1e-6)
    assert forward == pytest.approx(0.2231, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_t1_word_kd_gradient_is_its_closed_form_and_zero_at_equality(temperature):
    term, teacher = WordKD(temperature), logits(2)
    student = logits(3).requires_grad_()
    term(student, teacher, TGT).sum().backward()
    q, p = torch.softmax(student.detach() / temperature, -1), torch.softmax(teacher / temperature, -1)
    torch.testing.assert_close(student.grad, temperature * (q - p))
    assert term(teacher, teacher, TGT).abs().max() < 1e-12
    assert (term(student, teacher, TGT) > 0).all()


def test_without_t_squared_the_loss_is_that_much_smaller():
    with_factor = WordKD(3.0)(logits(1), logits(2), TGT)
    torch.testing.assert_close(WordKD(3.0, t_squared=False)(logits(1), logits(2), TGT) * 9.0, with_factor)


# --- the reduce ------------------------------------------------------------------------------------------------


def objective(mix: float = 0.3, mix_by: str = "sampling") -> Objective:
    return Objective(
        {
            "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll(0.1), mixed=True),
            "pseudo_nll": WeightedTerm(0.7, "pseudo", "tgt_token", Nll(), mixed=True),
            "word_kd": WeightedTerm(0.5, "all", "tgt_token", WordKD(2.0)),
            "off": WeightedTerm(0.0, "all", "sentence", Nll()),
        },
        mix=mix,
        mix_by=mix_by,
    )


def make_batch(rows: list[tuple[list[int], list[int], bool]], extra: int = 0) -> Batch:
    """(source ids, target ids, is pseudo) with `extra` columns of padding."""
    pad = V - 1
    S, T = max(len(s) for s, _, _ in rows) + extra, max(len(t) for _, t, _ in rows) + extra
    src = torch.tensor([s + [pad] * (S - len(s)) for s, _, _ in rows])
    tgt_out = torch.tensor([t + [pad] * (T - len(t)) for _, t, _ in rows])
    tgt_in = torch.cat([torch.full((len(rows), 1), pad), tgt_out[:, :-1]], dim=1)
    lengths = torch.tensor([len(t) for _, t, _ in rows])
    mask = torch.arange(T) < lengths[:, None]
    index = torch.arange(len(rows))
    targets = Targets(index, torch.tensor([p for _, _, p in rows]), tgt_in, tgt_out, mask)
    src_mask = torch.arange(S) < torch.tensor([len(s) for s, _, _ in rows])[:, None]
    return Batch(index, src, src_mask, targets)


def rows(num: int) -> list[tuple[list[int], list[int], bool]]:
    generator = torch.Generator().manual_seed(7)

    def ids(limit: int) -> list[int]:
        n = int(torch.randint(1, limit, (), generator=generator))
        return [*torch.randint(2, V - 1, (n,), generator=generator).tolist(), 0]

    return [(ids(8), ids(9), i % 3 == 1) for i in range(num)]


def model(seed: int, **settings) -> Transformer:
    made = Transformer(TransformerConfig(V, V, 1, 1, D, 12, 2, dropout=0.0, **settings))
    random_init(made, seed)
    return made


def gradients(batches: list[Batch], *, chunk_size: int = 1000, plain: bool = False, mix_by: str = "sampling"):
    """Loss, sums and gradients of one optimizer step cut into these microbatches."""
    student, teacher, goal = model(1, softmax_bias=True), model(2), objective(mix_by=mix_by)
    scales = goal.scales(goal.units(batches))
    loss, sums = 0.0, {}
    for batch in batches:
        args = (batch.src_BS, batch.src_mask_BS, batch.targets.tgt_in_RT, None, batch.targets.mask_RT)
        with torch.no_grad():
            guide = Side(teacher(*args).decoder_ND, teacher.head())
        side = Side(student(*args).decoder_ND, student.head())
        got = reduce(goal.active, scales, batch.targets, side, guide, chunk_size=chunk_size, plain=plain)
        got.loss.backward()
        loss += got.loss.item()
        for name, value in got.sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return loss, sums, {name: p.grad for name, p in student.named_parameters()}


def same(a, b) -> None:
    assert a[0] == pytest.approx(b[0], abs=1e-6)
    assert a[1] == pytest.approx(b[1], abs=1e-4)
    for name in a[2]:
        torch.testing.assert_close(a[2][name], b[2][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mix_by", ["sampling", "weights"])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_t26_chunks_equal_plain_autograd(chunk_size, mix_by):
    batches = [make_batch(rows(9))]
    same(gradients(batches, chunk_size=chunk_size, mix_by=mix_by), gradients(batches, plain=True, mix_by=mix_by))


def test_t26_bf16_chunks_equal_plain_bf16_and_equal_models_give_zero():
    batch, student = make_batch(rows(9)), model(1)
    goal = Objective({"kd": WeightedTerm(1.0, "all", "tgt_token", WordKD(1.0))})
    scales, grads = goal.scales(goal.units([batch])), []
    for plain in (True, False):
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            args = (batch.src_BS, batch.src_mask_BS, batch.targets.tgt_in_RT, None, batch.targets.mask_RT)
            hidden = student(*args).decoder_ND
            itself = Side(hidden.detach(), student.head())
            got = reduce(
                goal.active, scales, batch.targets, Side(hidden, student.head()), itself, chunk_size=7, plain=plain
            )
            assert got.loss.item() == 0.0
            other = Side(model(2)(*args).decoder_ND.detach(), model(2).head())
            got = reduce(
                goal.active, scales, batch.targets, Side(hidden, student.head()), other, chunk_size=7, plain=plain
            )
        got.loss.backward()
        grads.append({name: p.grad.clone() for name, p in student.named_parameters()})
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, atol=3e-3, rtol=0.05)


def test_t2_gradient_equals_finite_differences_of_the_reported_loss():
    batch, goal, teacher = make_batch(rows(4)), objective(), model(2)
    args = (batch.src_BS, batch.src_mask_BS, batch.targets.tgt_in_RT, None, batch.targets.mask_RT)
    hidden = torch.randn(int(batch.targets.mask_RT.sum()), D, dtype=torch.float64)
    weight = torch.randn(V, D, dtype=torch.float64)
    with torch.no_grad():
        guide = Side(teacher(*args).decoder_ND.double(), Head(teacher.head().weight_VD.double(), None, V - 1))
    scales = goal.scales(goal.units([batch]))

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        side = Side(h, Head(w, None, V - 1))
        return reduce(goal.active, scales, batch.targets, side, guide, chunk_size=5).loss

    hidden.requires_grad_(), weight.requires_grad_()
    grads = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    for tensor, grad in zip((hidden, weight), grads, strict=True):
        direction = torch.randn_like(tensor)
        eps = 1e-5
        moved = [loss(*(t + s * eps * direction if t is tensor else t for t in (hidden, weight))) for s in (1, -1)]
        numeric = (moved[0] - moved[1]).item() / (2 * eps)
        assert numeric == pytest.approx((grad * direction).sum().item(), rel=1e-6)


def test_units_and_the_mixture():
    batch = make_batch([([2, 0], [3, 4, 0], False), ([2, 3, 0], [5, 0], True), ([2, 0], [6, 7, 8, 0], True)])
    assert [batch.num_units(on, "tgt_token") for on in ("gold", "pseudo", "all")] == [3, 6, 9]
    assert [batch.num_units(on, "src_token") for on in ("gold", "pseudo", "all")] == [2, 5, 7]
    assert [batch.num_units(on, "sentence") for on in ("gold", "pseudo", "all")] == [1, 2, 3]
    sampling, weights = objective(mix=0.25), objective(mix=0.25, mix_by="weights")
    assert sampling.units([batch]) == {"nll": 9, "pseudo_nll": 9, "word_kd": 9}
    assert weights.units([batch]) == {"nll": 3, "pseudo_nll": 6, "word_kd": 9}
    assert weights.scales(weights.units([batch])) == pytest.approx(
        {"nll": 0.25 / 3, "pseudo_nll": 0.7 * 0.75 / 6, "word_kd": 0.5 / 9}
    )
    assert "0.25 * [-log p(y), label smoothing 0.1] on gold rows" in weights.formula()
