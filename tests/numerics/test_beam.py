"""Beam search against enumeration of every sequence, greedy against a plain loop, and batch independence."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from kdlab.decoding.beam import BLOCK, BeamConfig, beam_search, best_candidates
from kdlab.decoding.translate import for_decoding, plan_batches, translate
from kdlab.errors import UserError
from kdlab.models.init import random_init
from kdlab.models.int8 import Int8Linear, can_pack
from kdlab.models.transformer import Transformer, TransformerConfig

EOS = 0
STYLES = [
    dict(norm="post", tie="all"),
    dict(norm="pre", tie="decoder_softmax", softmax_bias=True),
    dict(norm="post", tie="none", activation="gelu"),
]


def build(vocab, seed=1, spread=2.0, **style):
    """A random model whose distributions are far from flat, and whose hypotheses end now and then."""
    model = Transformer(TransformerConfig(vocab, vocab, 1, 2, 16, 32, 2, max_positions=64, **style))
    random_init(model, seed)
    with torch.no_grad():
        model.head().weight_VD.mul_(spread)
        if model.config.softmax_bias:
            model.softmax_bias[EOS] = 1.0
    return model.eval()


def sources(vocab, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(1, vocab - 1, (n - 1,), generator=generator).tolist(), EOS] for n in lengths]


@torch.no_grad()
def log_probs(model, src, outs):
    """Sums of log p of outputs of one length; padding and a first EOS are left out of the softmax."""
    pad, outs = model.config.tgt_vocab_size - 1, torch.tensor(outs)
    tgt_in = torch.cat([torch.full((len(outs), 1), pad), outs[:, :-1]], dim=1)
    hidden = model(torch.tensor([src]), torch.ones(1, len(src)).bool(), tgt_in, torch.zeros(len(outs)).long())
    logits = F.linear(hidden.decoder_ND.unflatten(0, outs.shape), model.head().weight_VD, model.head().bias_V)
    logits[:, :, pad] = logits[:, 0, EOS] = -math.inf
    return torch.log_softmax(logits, -1).gather(2, outs[..., None]).double().sum((1, 2)).tolist()


def enumerate_all(model, src, max_length, penalty):
    """Every finished hypothesis with its score, best first."""
    tokens, found = range(1, model.config.tgt_vocab_size - 1), []
    for length in range(1, max_length):
        every = [list(ids) for ids in itertools.product(tokens, repeat=length)]
        totals = log_probs(model, src, [[*ids, EOS] for ids in every])
        found += [(total / (length + 1) ** penalty, ids) for total, ids in zip(totals, every, strict=True)]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("penalty", [1.0, 0.6, 2.0])
def test_a_wide_beam_finds_what_enumeration_finds(style, penalty):
    model = build(6, **style)
    src = sources(6, [5])[0]
    expected = enumerate_all(model, src, 4, penalty)
    # 84 sequences can finish and at most 4**3 * 5 continuations are alive: nothing is cut and nothing stops early
    config = BeamConfig(320, penalty, n_best=len(expected), max_length_ratio=0.0, max_length_extra=4)
    found = beam_search(model, [src], config)[0]
    assert [h.ids for h in found] == [ids for _, ids in expected]
    assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert all(h.finished and h.log_prob == pytest.approx(h.score * (len(h.ids) + 1) ** penalty) for h in found)


@pytest.mark.parametrize("seed", [1, 2])
def test_without_length_penalty_the_best_of_all_is_found_though_the_search_stops_early(seed):
    model = build(7, seed=seed, **STYLES[1])
    src = sources(7, [6], seed)[0]
    found = beam_search(model, [src], BeamConfig(300, 0.0, max_length_ratio=0.0, max_length_extra=4))[0]
    score, ids = enumerate_all(model, src, 4, 0.0)[0]
    assert (found[0].ids, len(found)) == (ids, 1)
    assert found[0].score == pytest.approx(score, abs=1e-5)


def reference_search(model, src, beam, penalty, max_length):
    """The same search with lists and full forwards: 2K candidates, finished among the first K, stop at K finished."""
    vocab, alive, finished = model.config.tgt_vocab_size, [([], 0.0)], []
    for step in range(max_length):
        outs = [[*ids, token] for ids, _ in alive for token in range(vocab - 1) if token != EOS or step > 0]
        candidates = sorted(zip(log_probs(model, src, outs), outs, strict=True), reverse=True)[: 2 * beam]
        ended = [c for c in candidates[:beam] if c[1][-1] == EOS]
        finished += [(total / (step + 1) ** penalty, ids[:-1], True) for total, ids in ended]
        alive = [(ids, total) for total, ids in candidates if ids[-1] != EOS][:beam]
        if len(finished) >= beam or (penalty == 0 and candidates[0][1][-1] == EOS):
            break
    unfinished = [(total / max_length**penalty, ids, False) for ids, total in alive]
    return sorted(finished or unfinished, key=lambda hypothesis: -hypothesis[0])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("beam", "penalty"), [(1, 1.0), (2, 0.0), (3, 1.0), (4, 0.5)])
def test_a_narrow_beam_equals_the_plain_search_also_in_a_batch(style, beam, penalty):
    model = build(9, seed=3, spread=1.5, **style)
    batch = sources(9, [4, 9, 2, 6, 7], seed=beam)
    config = BeamConfig(beam, penalty, n_best=beam if penalty else 1, max_length_ratio=1.0, max_length_extra=3)
    together = beam_search(model, batch, config)
    kinds = set()
    for src, found in zip(batch, together, strict=True):
        expected = reference_search(model, src, beam, penalty, len(src) + 3)[: config.n_best]
        assert [(h.ids, h.finished) for h in found] == [(i, f) for _, i, f in expected]
        assert [h.score for h in found] == pytest.approx([score for score, _, _ in expected], abs=1e-5)
        assert all(8 not in h.ids and EOS not in h.ids and h.ids for h in found)
        kinds |= {(h.finished, len(h.ids)) for h in found}
        (alone,) = beam_search(model, [src], config)
        assert [h.ids for h in alone] == [h.ids for h in found]
        assert [h.score for h in alone] == pytest.approx([h.score for h in found], abs=1e-5)
    assert len(kinds) > 1


def test_beam_one_is_greedy():
    model = build(50, seed=2, spread=1.0, **STYLES[1])
    for src in sources(50, [3, 12, 30]):
        config = BeamConfig(1, 1.0, max_length_ratio=1.0, max_length_extra=20)
        pad, ids = 49, []
        for step in range(len(src) + 20):
            with torch.no_grad():
                hidden = model(torch.tensor([src]), torch.ones(1, len(src)).bool(), torch.tensor([[pad, *ids]]))
                logits = F.linear(hidden.decoder_ND[-1], model.head().weight_VD, model.head().bias_V)
            logits[pad] = -math.inf
            if step == 0:
                logits[EOS] = -math.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == EOS:
                break
        (found,) = beam_search(model, [src], config)[0]
        assert found.ids == [token for token in ids if token != EOS]
        assert found.finished == (ids[-1] == EOS)


@pytest.mark.parametrize("vocab", [7, BLOCK, BLOCK + 1, 5 * BLOCK - 3])
def test_two_stage_selection_is_exact_and_settles_ties_by_beam_and_id(vocab):
    torch.manual_seed(vocab)
    scores = torch.randn(4, 3)
    log_probs = torch.randint(-9, 0, (4, 3, vocab)).float()  # ties everywhere
    log_probs[:, :, 2] = -torch.inf
    scores[1, 1:] = -torch.inf
    got, beams, tokens = best_candidates(log_probs, scores, 6)
    totals = (log_probs + scores[..., None]).flatten(1)
    assert torch.equal(got, totals.sort(dim=1, descending=True).values[:, :6])
    assert torch.equal(got, totals.gather(1, beams * vocab + tokens))
    flat = beams * vocab + tokens
    ties = got[:, 1:] == got[:, :-1]
    assert ties.any() and (flat[:, 1:] > flat[:, :-1])[ties].all()


def test_translate_restores_the_order_and_its_plan_keeps_to_the_budget():
    model = build(40, spread=1.0, **STYLES[0])
    batch = sources(40, [3, 17, 5, 5, 29, 11, 2, 8, 8, 23], seed=4)
    config = BeamConfig(3, 1.0, n_best=2, max_length_ratio=1.0, max_length_extra=2)
    model.train()
    done = []
    together = translate(model, batch, config, batch_tokens=150, progress=done.append)
    assert model.training and sum(done) == len(batch)
    model.eval()
    for src, found in zip(batch, together, strict=True):
        (alone,) = beam_search(model, [src], config)
        assert [h.ids for h in found] == [h.ids for h in alone]
        assert found[0].score >= found[-1].score
    plan = plan_batches([len(src) for src in batch], batch_tokens=150, beam_size=3)
    assert sorted(itertools.chain(*plan)) == list(range(10))
    assert all(len(b) == 1 or len(b) * 3 * max(len(batch[i]) for i in b) <= 150 for b in plan)
    assert translate(model, batch, config, batch_tokens=150) == together


def test_translating_amid_training_leaves_the_gradient_alone():
    model, config = build(40, **STYLES[0]), BeamConfig(2, 1.0)
    batch = sources(40, [5, 9])
    with torch.autocast("cpu", torch.bfloat16):
        found = translate(model, batch, config, batch_tokens=500)
        hidden = model(torch.tensor([batch[0]]), torch.ones(1, 5).bool(), torch.tensor([[39, 3]])).decoder_ND
    hidden.float()[..., 0].sum().backward()
    assert model.encoder[0].feed_forward.fc1.weight.grad.abs().max() > 0
    assert found == translate(model, batch, config, batch_tokens=500)


def test_bf16_decodes_with_a_copy_and_the_same_result_twice():
    model = build(40, spread=1.0, **STYLES[1])
    copy = for_decoding(model, precision="bf16", device="cpu")
    assert model.head().weight_VD.dtype == torch.float32 and copy.head().weight_VD.dtype == torch.bfloat16
    assert torch.equal(copy.positions, model.positions)
    batch, config = sources(40, [5, 9, 14]), BeamConfig(4, 1.0)
    one, two = (translate(copy, batch, config, batch_tokens=500) for _ in range(2))
    assert one == two
    src = batch[0]
    best = one[0][0]
    (exact,) = log_probs(model, src, [best.ids + [EOS] * best.finished])
    assert best.log_prob == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("style", STYLES)
def test_int8_decodes_with_a_copy_and_a_sentence_alone_as_beside_others(style):
    model = build(200, spread=1.0, **style)
    copy = for_decoding(model, precision="int8", device="cpu")
    assert not any(isinstance(module, torch.nn.Linear) for module in copy.modules())
    assert any(isinstance(module, torch.nn.Linear) for module in model.modules()) and model.projection is None
    batch, config = sources(200, range(2, 32), seed=7), BeamConfig(3, 1.0, max_length_ratio=1.0, max_length_extra=4)
    together = translate(copy, batch, config, batch_tokens=10**6)
    assert translate(copy, batch, config, batch_tokens=10**6) == together
    error = []
    for src, (found,) in zip(batch, together, strict=True):
        (alone,) = beam_search(copy, [src], config)[0]
        assert alone.ids == found.ids and alone.log_prob == pytest.approx(found.log_prob, abs=1e-4)
        (exact,) = log_probs(model, src, [found.ids + [EOS] * found.finished])
        error.append(abs(found.log_prob - exact) / (len(found.ids) + found.finished))
    assert 1e-4 < sum(error) / len(error) < 0.05  # nats a token


@pytest.mark.parametrize(
    "packed", [False, pytest.param(True, marks=pytest.mark.skipif(not can_pack(), reason="no VNNI"))]
)
def test_an_int8_layer_gives_a_row_the_same_bits_in_any_company(packed):
    torch.manual_seed(1)
    linear = torch.nn.Linear(32, 50)
    with torch.no_grad():
        linear.weight[3] *= 1000  # an output of another size costs the others nothing
    rows = torch.randn(40, 32) * torch.logspace(-3, 3, 40)[:, None]
    layer = Int8Linear(linear.weight, linear.bias, torch.float32, packed)
    assert layer(rows[:0]).shape == (0, 50)
    assert torch.equal(layer(rows), Int8Linear(linear.weight, linear.bias, torch.float32, False)(rows))
    together = layer(rows)
    assert all(torch.equal(layer(rows[i : i + 1])[0], together[i]) for i in range(40))
    exact = linear(rows).detach()
    scale = rows.norm(dim=1, keepdim=True) * linear.weight.detach().norm(dim=1)
    assert 0 < ((together - exact).abs() / scale).max() < 0.02
    grid = Int8Linear(torch.tensor([[127.0, -3.0], [2.0, 127.0]]), None, torch.float32, packed)  # whole numbers: exact
    assert grid(torch.tensor([[127.0, 5.0], [-127.0, 1.0]])).tolist() == [[16114.0, 889.0], [-16132.0, -127.0]]


def test_a_model_without_numbers_is_refused_or_told_apart_sentence_by_sentence():
    model, config = build(20, **STYLES[2]), BeamConfig(2, 1.0)
    batch = [[3, 4, EOS], [3, 7, 5, EOS], [5, 5, EOS]]
    whole = beam_search(model, batch, config)
    with torch.no_grad():
        model.src_embedding.weight[7, 0] = torch.nan
    found = beam_search(model, batch, config)
    assert found[::2] == whole[::2]
    assert [(one.ids, one.finished, math.isnan(one.score), math.isnan(one.log_prob)) for one in found[1]] == [
        ([], False, True, True)
    ]
    with pytest.raises(UserError, match="1 of 3 sentences got no hypothesis.*NaN.*decode in fp32"):
        translate(model, batch, config, batch_tokens=99)


def test_mistakes_are_refused():
    model = build(9, **STYLES[0])
    with pytest.raises(UserError, match="int4.*write fp32, bf16 or int8"):
        for_decoding(model, precision="int4", device="cpu")
    with pytest.raises(UserError, match="int8 on cuda:0.*CPUs alone.*write bf16"):
        for_decoding(model, precision="int8", device="cuda:0")
    for wrong in (dict(beam_size=0), dict(n_best=3), dict(max_length_ratio=0.0, max_length_extra=0)):
        with pytest.raises(UserError):
            BeamConfig(**{"beam_size": 2, "length_penalty": 1.0, **wrong})
    with pytest.raises(UserError, match="sentence 2 has 70 tokens"):
        translate(model, [[1, 0], [1] * 70], BeamConfig(1, 1.0), batch_tokens=100)
    assert beam_search(model, [], BeamConfig(1, 1.0)) == []
