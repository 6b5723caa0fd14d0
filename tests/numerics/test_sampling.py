"""Sampling: frequencies against exact probabilities, the support of top-k and top-p, and one line as in any batch."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from kdlab.data import mixing
from kdlab.decoding import sampling as drawing
from kdlab.decoding.beam import BeamConfig
from kdlab.decoding.ensemble import Ensemble
from kdlab.decoding.sampling import Sampling, draw, sample
from kdlab.errors import UserError
from tests.numerics.test_beam import EOS, STYLES, build, enumerate_all, log_probs, sources

KEYS = torch.arange(40_000) * 7919


def chi_square(counts, probs):
    """Of counts by token against probabilities, and how many tokens it sums over."""
    total, some = sum(counts.values()), {token: p for token, p in probs.items() if p > 0}
    assert set(counts) <= set(some)
    return sum((counts[t] - total * p) ** 2 / (total * p) for t, p in some.items()), len(some) - 1


def assert_drawn_from(counts, probs):
    """Chi-square within five of its standard deviations: the draws are fixed by their keys, so this cannot flicker."""
    statistic, freedom = chi_square(counts, probs)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.39}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),  # of the three 7/9 > 0.7, of all only 0.7
        ({"temperature": 0.5, "top_p": 0.6}, [16 / 25, 9 / 25, 0, 0]),
        ({"top_k": 99, "top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_tokens_come_from_the_stated_part_of_the_distribution_with_its_probabilities(settings, expected):
    order = torch.tensor([3, 0, 2, 1])  # the likeliest token is not the first
    log_probs_RV = torch.tensor(expected if not settings else [0.4, 0.3, 0.2, 0.1])[order].log().expand(len(KEYS), 4)
    drawn = Counter(draw(log_probs_RV, KEYS, Sampling(**settings)).tolist())
    probs = dict(enumerate(torch.tensor(expected, dtype=torch.float64)[order].tolist()))
    assert set(drawn) == {token for token, p in probs.items() if p > 0}
    if len(drawn) > 1:
        assert_drawn_from(drawn, probs)


def test_wide_distributions_keep_their_probabilities_and_forbidden_tokens_stay_away():
    log_probs_V = torch.log_softmax(2 * torch.randn(100, generator=torch.Generator().manual_seed(3)), 0)
    log_probs_V[7] = -torch.inf
    drawn = draw(log_probs_V.expand(len(KEYS), 100), KEYS, Sampling())
    assert_drawn_from(Counter(drawn.tolist()), dict(enumerate(log_probs_V.double().exp().tolist())))
    top = draw(log_probs_V.expand(len(KEYS), 100), KEYS, Sampling(top_k=10))
    assert set(top.tolist()) == set(log_probs_V.topk(10).indices.tolist())


def test_noise_is_the_stream_of_splitmix_that_mixing_uses_too():
    bits = np.array([0, 1, 2**63 + 5, 2**64 - 1], dtype=np.uint64)
    ours = drawing._scrambled(torch.from_numpy(bits.astype(np.int64)))
    assert ours.numpy().astype(np.uint64).tolist() == mixing.scrambled(bits).tolist()
    noise = drawing._gumbel(torch.tensor([5, 6]), torch.arange(50_000).expand(2, -1)).double()
    assert noise.isfinite().all() and noise.mean() == pytest.approx(0.5772, abs=0.02)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.02 and abs(torch.corrcoef(noise[:, ::2] * noise[:, 1::2])[0, 1]) < 0.02


def test_whole_outputs_have_the_probability_that_the_model_gives_them():
    model, num_lines = build(6, spread=1.0, **STYLES[1]), 3000
    src = sources(6, [5])[0]
    config = BeamConfig(4, 0.6, n_best=4, max_length_ratio=0.0, max_length_extra=4)
    found = sample(Ensemble([model]), list(range(num_lines)), [src] * num_lines, config, Sampling(seed=5))
    assert all(len(samples) == 4 for samples in found)
    every = list(itertools.chain(*found))
    exact = {tuple(ids): score * (len(ids) + 1) ** 0.6 for score, ids in enumerate_all(model, src, 4, 0.6)}
    cut_off = {tuple(ids): total for ids, total in all_of_length(model, src, 4)}
    for one in every:
        expected = (exact if one.finished else cut_off)[tuple(one.ids)]
        assert one.log_prob == pytest.approx(expected, abs=1e-4)
        assert one.score == pytest.approx(one.log_prob / (len(one.ids) + one.finished) ** 0.6)
    probs = {ids: math.exp(total) for ids, total in (exact | cut_off).items()}
    assert sum(probs.values()) == pytest.approx(1.0, abs=1e-5)
    assert_drawn_from(Counter(tuple(one.ids) for one in every), probs)
    assert {one.finished for one in every} == {True, False}
    for samples in found:
        ranks = [(not one.finished, -one.score) for one in samples]
        assert ranks == sorted(ranks)


def all_of_length(model, src, length):
    every = [list(ids) for ids in itertools.product(range(1, model.config.tgt_vocab_size - 1), repeat=length)]
    return zip(every, log_probs(model, src, every), strict=True)


@pytest.mark.parametrize("settings", [{}, {"top_k": 10}, {"top_p": 0.9, "temperature": 0.8}])
def test_a_line_is_sampled_alone_as_in_any_batch(settings):
    asked = Ensemble([build(50, seed=2, spread=1.0, **STYLES[1])])
    batch = sources(50, [3, 12, 30, 7, 7, 19, 2, 25])
    config, sampling = BeamConfig(3, 1.0, n_best=3, max_length_ratio=1.0, max_length_extra=4), Sampling(**settings)
    rows = [10**12 + 5, 3, 77, 1, 0, 9, 8, 2]
    together = sample(asked, rows, batch, config, sampling)
    other = [5, 2, 7, 0, 1]
    for order in ([0], [4], list(range(8))[::-1], other):
        part = sample(asked, [rows[at] for at in order], [batch[at] for at in order], config, sampling)
        for at, samples in zip(order, part, strict=True):
            assert [(x.ids, x.finished) for x in samples] == [(x.ids, x.finished) for x in together[at]]
            assert [x.score for x in samples] == pytest.approx([x.score for x in together[at]], abs=1e-5)
    outputs = {tuple(x.ids) for samples in together for x in samples}
    assert len(outputs) > 20
    assert sample(asked, rows, batch, config, sampling) == together
    assert sample(asked, [row + 1 for row in rows], batch, config, sampling) != together
    assert sample(asked, rows, batch, config, Sampling(**settings, seed=2)) != together
    fewer = sample(asked, rows, batch, BeamConfig(2, 1.0, n_best=2, max_length_ratio=1.0, max_length_extra=4), sampling)
    assert all(
        {tuple(x.ids) for x in two} <= {tuple(x.ids) for x in three} for two, three in zip(fewer, together, strict=True)
    )


def test_limits_of_length_hold_and_what_cannot_be_drawn_from_is_refused():
    asked = Ensemble([build(20, **STYLES[0])])
    config = BeamConfig(2, 1.0, n_best=2, max_length_ratio=1.0, max_length_extra=0)
    for src, samples in zip(
        batch := sources(20, [2, 9, 5]), sample(asked, [1, 2, 3], batch, config, Sampling()), strict=True
    ):
        for one in samples:
            assert len(one.ids) >= 1 and len(one.ids) + one.finished <= len(src) and not {EOS, 19} & set(one.ids)
            assert one.finished or len(one.ids) == len(src)
    assert sample(asked, [], [], config, Sampling()) == []
    with torch.no_grad():
        asked.members[0].decoder[0].feed_forward.fc1.weight[0] = torch.nan
    broken = sample(asked, [1, 2, 3], batch, config, Sampling())
    assert all(math.isnan(x.score) and math.isnan(x.log_prob) for samples in broken for x in samples)
    for wrong in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*nothing to draw from; write"):
            Sampling(**wrong)
