"""Traps of masks, normalisers, vocabularies and chunks on every path, each also with planted defects."""

import math

import pytest
import torch

from kdlab.data import batching
from kdlab.errors import UserError
from kdlab.objectives import reduce
from kdlab.objectives.objective import Objective
from kdlab.objectives.word_kd import WordKD
from kdlab.types import Batch, Head, Targets, TopK
from tests.numerics import step as steps
from tests.numerics.step import PAD, REAL, V, by_hand, model, step
from tests.traps import TOP_K, trap


def units_of_the_first_microbatch(patch):
    units = Objective.units
    patch.setattr(Objective, "units", lambda self, step: {n: u * len(step) for n, u in units(self, step[:1]).items()})


@trap(units_of_the_first_microbatch)
def test_t3_a_step_cut_in_different_ways_has_the_same_gradient(path):
    whole = by_hand()
    for cut in ([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]], [[11], [0, 3, 1], [2, 4, 5, 6, 7, 8, 9, 10]]):
        assert step(path, cut=cut).is_near(whole, path)


def mask(patch, made):
    """Gives every batch another mask: made(targets)."""

    def targets(**fields):
        right = Targets(**fields)
        ids = right.tgt_out_RT.where(right.mask_RT, 0)  # what is counted must be a token: EOS
        return Targets(**{**fields, "mask_RT": made(right), "tgt_out_RT": ids})

    patch.setattr(batching, "Targets", targets)


def padding_counted(patch):
    mask(patch, lambda targets: torch.ones_like(targets.mask_RT))


def mask_from_decoder_inputs(patch):
    mask(patch, lambda targets: targets.tgt_in_RT != PAD)  # the start token is the padding id


@trap(padding_counted, mask_from_decoder_inputs)
def test_t6_a_batch_is_its_sentences_without_padding(path):
    assert step(path).is_near(by_hand(), path)


def divided_by_all_positions(patch):
    right = Batch.num_units
    patch.setattr(Batch, "num_units", lambda self, on, per: right(self, on, "position"))


@trap(divided_by_all_positions)
def test_t7_sums_are_divided_by_real_tokens(path):
    assert step(path).is_near(by_hand(), path)


def phantom_token(patch):
    head = steps.Transformer.head
    patch.setattr(steps.Transformer, "head", lambda self: Head(head(self).weight_VD, head(self).bias_V, V))


@trap(phantom_token)
def test_t12_the_padding_id_has_no_probability(path):
    before = step(path)
    student, teacher = model(1), model(2)
    with torch.no_grad():
        student.softmax_bias[PAD], teacher.softmax_bias[PAD] = 9.0, -4.0
    after = step(path, student=student, teacher=teacher)
    assert (after.loss, after.sums) == (before.loss, before.sums)
    assert float(student.softmax_bias.grad[PAD]) == 0.0


def mass_over_the_whole_batch(patch):
    at = TopK.at

    def wrong(self, temperature):
        log_p_NK, rest_N = at(self, temperature)
        return log_p_NK - math.log(len(log_p_NK)), rest_N - math.log(len(log_p_NK))

    patch.setattr(TopK, "at", wrong)


def tail_dropped(patch):
    def wrong(self, temperature):
        log_p_NK = torch.log_softmax(self.log_probs_NK / temperature, dim=-1)
        return log_p_NK, torch.full_like(log_p_NK[:, 0], -1e4)

    patch.setattr(TopK, "at", wrong)


@trap(mass_over_the_whole_batch, tail_dropped, paths=(TOP_K,))
def test_t25_top_k_knows_no_more_than_all_and_all_of_it_with_k_equal_v(path):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, REAL, generator=generator, dtype=torch.float64) for _ in range(2))
    tgt = torch.zeros(6, dtype=torch.long)
    for temperature in (0.5, 1.0, 2.0):
        term = WordKD(temperature)
        dense, last = term(student, teacher, tgt), torch.zeros(6, dtype=torch.float64)
        for k in (1, 3, 6, REAL):
            nats = term(student, TopK.of(teacher, k, (0.5, 1.0, 2.0)), tgt)
            assert (nats > last - 1e-9).all() and (nats < dense + 1e-9).all()
            last = nats
        torch.testing.assert_close(last, dense)
    with pytest.raises(UserError):
        WordKD(3.0)(student, TopK.of(teacher, 3, (1.0,)), tgt)
    assert step(TOP_K).is_near(by_hand(), TOP_K)


def mean_of_chunks(patch):
    gradient = reduce._Work.gradient

    def wrong(self, *args):
        return tuple(part / 2 for part in gradient(self, *args))

    patch.setattr(reduce._Work, "gradient", wrong)


def last_chunk_dropped(patch):
    chunks = reduce.Positions.chunks
    patch.setattr(reduce.Positions, "chunks", lambda self, size: chunks(self, size)[: max(1, 60 // size)])


@trap(mean_of_chunks, last_chunk_dropped, paths=("chunked", "cached", "bf16", TOP_K))
def test_t26_chunks_of_any_size_are_the_whole(path):
    whole = by_hand()
    for chunk_size in (1, 7, 1000):
        assert step(path, chunk_size=chunk_size).is_near(whole, path)


def divided_by_nothing(patch):
    patch.setattr(
        Objective,
        "scales",
        lambda self, units: {n: self.weight(t) / (units[n] or 0.0 * math.inf) for n, t in self.active.items()},
    )


@trap(divided_by_nothing)
def test_t28_a_step_without_gold_rows_is_no_nan(path):
    pseudo = [1, 4, 7, 10]
    got, expected = step(path, cut=[pseudo[:1], pseudo[1:]]), by_hand(tuple(pseudo))
    assert got.sums["gold"] == 0.0 and got.is_near(expected, path)
    mixed = step(path, cut=[pseudo, [row for row in steps.WHOLE[0] if row not in pseudo]])
    assert mixed.is_near(by_hand(), path)
