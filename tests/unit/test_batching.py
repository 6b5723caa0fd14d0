"""Epochs cut into steps and steps into microbatches: nothing lost, nothing twice, little padding."""

from itertools import islice

import numpy as np
import pytest
import torch

from kdlab.data.batching import (
    Lengths,
    StepStream,
    StreamPosition,
    collate,
    cut_epoch,
    evaluation_batches,
    padding_ratio,
    split_step,
)
from kdlab.data.mixing import Mixing
from kdlab.errors import UserError

PAD = 99
EOS = 0


class FakeTargets:
    """The interface that Rows and PseudoLabels share: ids of targets by index."""

    def __init__(self, ids):
        self.ids = [np.array(row, dtype=np.int32) for row in ids]
        self.tgt_len = np.array([len(row) for row in ids], dtype=np.int32)

    def tgt_ids(self, index):
        return [self.ids[i] for i in index]


class FakeRows(FakeTargets):
    """Rows of random ids; a row's id is 1000 + its index."""

    def __init__(self, src, tgt):
        super().__init__(tgt)
        self.src = [np.array(row, dtype=np.int32) for row in src]
        self.src_len = np.array([len(row) for row in src], dtype=np.int32)
        self.row_id = 1000 + np.arange(len(src), dtype=np.int64)

    def __len__(self):
        return len(self.src)

    def src_ids(self, index):
        return [self.src[i] for i in index]


class FakeLabels(FakeTargets):
    """Labels for the rows whose ids are not empty."""

    def __init__(self, ids):
        super().__init__(ids)
        self.has_label = self.tgt_len > 0

    def drawn(self, epoch, seed):
        return self


def sentence(generator, longest=30):
    return [*generator.integers(2, 90, size=generator.integers(0, longest)), EOS]


def corpus(num_rows=300, seed=0):
    generator = np.random.default_rng(seed)
    rows = FakeRows([sentence(generator) for _ in range(num_rows)], [sentence(generator) for _ in range(num_rows)])
    labels = FakeLabels([sentence(generator) if i % 5 else [] for i in range(num_rows)])
    return rows, labels


def lognormal(num_rows, seed=0, noise=0.25):
    """Lengths of mean 28 and sigma 0.6; source over target with its own noise."""
    generator = np.random.default_rng(seed)
    tgt = np.exp(generator.normal(np.log(28) - 0.18, 0.6, num_rows))
    src = tgt * np.exp(generator.normal(0, noise, num_rows))
    return Lengths.of_gold(*(np.clip(np.round(x), 1, 250).astype(np.int32) for x in (src, tgt)))


def stream(rows, **changes):
    settings = {"tokens_per_step": 200, "microbatch_tokens": 150, "seed": 3, "src_pad_id": PAD, "tgt_pad_id": PAD}
    return StepStream(rows, **{**settings, **changes})


def contents(batches):
    """Everything that a step holds, whatever its microbatches: (row id, is pseudo, target) sorted."""
    found = []
    for batch in batches:
        targets = batch.targets
        for row in range(len(targets.source_R)):
            ids = targets.tgt_out_RT[row][targets.mask_RT[row]].tolist()
            found.append((int(batch.row_id_B[targets.source_R[row]]), bool(targets.is_pseudo_R[row]), tuple(ids)))
    return sorted(found)


def same(left, right):
    """Whether two lists of microbatches are equal, tensor by tensor."""
    if len(left) != len(right):
        return False
    pairs = [
        (a, b) for one, two in zip(left, right, strict=True) for a, b in zip(leaves(one), leaves(two), strict=True)
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def leaves(batch):
    return [batch.row_id_B, batch.src_BS, batch.src_mask_BS, *vars(batch.targets).values()]


@pytest.mark.parametrize("tokens_per_step", [64, 4096, 10**7])
def test_every_row_is_in_exactly_one_step_of_an_epoch(tokens_per_step):
    lengths = lognormal(20_000)
    for epoch in range(2):
        steps = cut_epoch(lengths, tokens_per_step=tokens_per_step, seed=1, epoch=epoch)
        assert np.array_equal(np.sort(np.concatenate(steps)), np.arange(20_000))
        for step in steps:
            assert lengths.tokens[step].sum() <= tokens_per_step or len(step) == 1


def test_steps_are_full_and_none_is_tiny():
    lengths = lognormal(50_000)
    sizes = np.array([lengths.tokens[s].sum() for s in cut_epoch(lengths, tokens_per_step=4096, seed=1, epoch=0)])
    assert sizes.mean() > 0.98 * 4096
    assert sizes.min() > 0.85 * 4096


def test_a_row_that_is_too_long_is_a_step_and_a_microbatch_of_its_own():
    lengths = Lengths.of_gold(np.array([5, 500, 5]), np.array([5, 500, 5]))
    steps = cut_epoch(lengths, tokens_per_step=100, seed=0, epoch=0)
    assert sorted(map(len, steps)) == [1, 2]
    pieces = split_step(lengths, np.array([0, 1, 2]), 60)
    assert sorted(map(sorted, pieces)) == [[0, 2], [1]]


@pytest.mark.parametrize("noise", [0.2, 0.3])
def test_little_is_padding(noise):
    lengths = lognormal(50_000, noise=noise)
    steps = cut_epoch(lengths, tokens_per_step=4096, seed=5, epoch=0)
    assert padding_ratio(lengths, steps) >= 0.9  # promised: 0.87
    large = cut_epoch(lengths, tokens_per_step=25_000, seed=5, epoch=0)
    assert padding_ratio(lengths, [piece for step in large for piece in split_step(lengths, step, 8192)]) >= 0.94
    unsorted = np.array_split(np.arange(50_000), len(steps))
    assert padding_ratio(lengths, unsorted) < 0.4


def test_epochs_differ_in_order_and_company():
    lengths = lognormal(5000)

    def cut(seed, epoch):
        return cut_epoch(lengths, tokens_per_step=4096, seed=seed, epoch=epoch)

    assert all(np.array_equal(a, b) for a, b in zip(cut(1, 0), cut(1, 0), strict=True))
    first = [set(step.tolist()) for step in cut(1, 0)]
    for other in (cut(1, 1), cut(2, 0)):
        nearest = [
            max(len(rows & set(step.tolist())) / len(rows | set(step.tolist())) for step in other) for rows in first
        ]
        assert np.mean(nearest) < 0.8
        assert [step.min() for step in other] != [min(rows) for rows in first]


def test_the_lengths_of_neighbouring_steps_are_shuffled():
    lengths = lognormal(50_000)
    means = np.array([lengths.tgt[s].mean() for s in cut_epoch(lengths, tokens_per_step=4096, seed=1, epoch=0)])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.2


@pytest.mark.parametrize("mixing", [Mixing(0.5, "sampling"), Mixing(0.5, "weights")])
def test_a_stream_resumes_at_any_step(mixing):
    rows, labels = corpus(60)
    settings = {"labels": labels, "mixing": mixing, "tokens_per_step": 150}
    whole = stream(rows, **settings)
    num_steps = len(whole.epoch(0).steps) + len(whole.epoch(1).steps)
    given = list(islice(whole, num_steps + 2))
    assert given[num_steps - 1][0] == StreamPosition(2, 0)
    for done in range(num_steps):
        resumed = list(islice(stream(rows, start=given[done][0], **settings), 2))
        for (position, batches), (expected_position, expected) in zip(resumed, given[done + 1 :], strict=False):
            assert position == expected_position
            assert same(batches, expected)
    with pytest.raises(ValueError, match="cannot start at step 10000"):
        next(iter(stream(rows, start=StreamPosition(0, 10_000), **settings)))


@pytest.mark.parametrize("mix_by", ["sampling", "weights"])
def test_microbatches_change_nothing_but_memory(mix_by):
    rows, labels = corpus()
    settings = {"labels": labels, "mixing": Mixing(0.4, mix_by)}
    whole = list(islice(stream(rows, microbatch_tokens=10**6, **settings), 40))
    assert all(len(batches) == 1 for _, batches in whole)
    for microbatch_tokens in (1, 90, 200):
        for (position, batches), (expected_position, expected) in zip(
            stream(rows, microbatch_tokens=microbatch_tokens, **settings), whole, strict=False
        ):
            assert position == expected_position
            assert contents(batches) == contents(expected)
            for origin in ("gold", "pseudo", "all"):
                for unit in ("tgt_token", "src_token", "sentence"):
                    total = sum(batch.num_units(origin, unit) for batch in batches)
                    assert total == expected[0].num_units(origin, unit)
            for batch in batches:
                size = batch.src_BS.numel() + batch.targets.tgt_out_RT.numel()
                assert size <= microbatch_tokens or len(batch.row_id_B) == 1


def test_sampling_gives_each_row_one_target_an_epoch():
    rows, labels = corpus()
    sampled = stream(rows, labels=labels, mixing=Mixing(0.4, "sampling"))
    epoch = sampled.epoch(0)
    given = contents(batch for _, batches in islice(sampled, len(epoch.steps)) for batch in batches)
    assert [row for row, _, _ in given] == rows.row_id.tolist()
    for row, is_pseudo, ids in given:
        source = labels if is_pseudo else rows
        assert ids == tuple(source.ids[row - 1000].tolist())
        assert is_pseudo == epoch.takes_pseudo[row - 1000]
    assert all(labels.has_label[row - 1000] for row, is_pseudo, _ in given if is_pseudo)
    for _, batches in islice(sampled, len(epoch.steps)):
        assert sum(batch.num_units("all", "tgt_token") for batch in batches) <= 200


def test_weights_gives_both_targets_of_a_source_in_one_step():
    rows, labels = corpus()
    both = stream(rows, labels=labels, mixing=Mixing(0.4, "weights"))
    num_steps = len(both.epoch(0).steps)
    expected = [(i + 1000, False, tuple(ids.tolist())) for i, ids in enumerate(rows.ids)]
    expected += [(i + 1000, True, tuple(ids.tolist())) for i, ids in enumerate(labels.ids) if len(ids)]
    assert contents(batch for _, batches in islice(both, num_steps) for batch in batches) == sorted(expected)
    for _, batches in islice(both, num_steps):
        assert sum(batch.num_units("all", "tgt_token") for batch in batches) <= 200
        for batch in batches:
            golds, pseudos = (batch.targets.source_R[batch.targets.origin_R(on)].tolist() for on in ("gold", "pseudo"))
            assert golds == list(range(len(batch.row_id_B)))  # every source is encoded once
            assert [batch.row_id_B[s] - 1000 for s in pseudos] == [
                row - 1000 for row in batch.row_id_B if labels.has_label[row - 1000]
            ]


def test_tensors_of_a_batch():
    rows = FakeRows([[5, 6, 0], [7, 0]], [[8, 0], [9, PAD, 3, 0]])  # PAD inside: masks come from lengths
    labels = FakeLabels([[4, 4, 0], []])
    gold, pseudo = np.array([True, True]), np.array([True, False])
    batch = collate(
        rows, np.array([1, 0]), src_pad_id=98, tgt_pad_id=PAD, labels=labels, takes_gold=gold, takes_pseudo=pseudo
    )
    assert batch.row_id_B.tolist() == [1001, 1000]
    assert batch.src_BS.tolist() == [[7, 0, 98], [5, 6, 0]]
    assert batch.src_mask_BS.tolist() == [[True, True, False], [True, True, True]]
    targets = batch.targets
    assert targets.source_R.tolist() == [0, 1, 1]
    assert targets.is_pseudo_R.tolist() == [False, False, True]
    assert targets.tgt_out_RT.tolist() == [[9, PAD, 3, 0], [8, 0, PAD, PAD], [4, 4, 0, PAD]]
    assert targets.tgt_in_RT.tolist() == [[PAD, 9, PAD, 3], [PAD, 8, PAD, PAD], [PAD, 4, 4, PAD]]
    assert targets.mask_RT.sum(-1).tolist() == [4, 2, 3]
    assert {tensor.dtype for tensor in leaves(batch)} == {torch.int64, torch.bool}
    assert batch.num_units("pseudo", "src_token") == 3


def test_evaluation_goes_through_all_golds_in_one_order():
    rows, _ = corpus()

    def batches(microbatch_tokens):
        return list(evaluation_batches(rows, microbatch_tokens=microbatch_tokens, src_pad_id=PAD, tgt_pad_id=PAD))

    assert contents(batches(300)) == [(i + 1000, False, tuple(ids.tolist())) for i, ids in enumerate(rows.ids)]
    assert same(batches(300), batches(300))
    assert len(batches(10**6)) == 1
    assert sum(batch.num_units("gold", "tgt_token") for batch in batches(70)) == rows.tgt_len.sum()
    assert list(evaluation_batches(FakeRows([], []), microbatch_tokens=9, src_pad_id=PAD, tgt_pad_id=PAD)) == []


def test_an_empty_corpus_is_refused():
    with pytest.raises(UserError, match="0 rows"):
        next(iter(stream(FakeRows([], []))))


@pytest.mark.parametrize(("num_ranks", "microbatch_tokens"), [(2, 150), (3, 150), (3, 10**6), (8, 40)])
def test_ranks_share_every_step_and_have_equally_many_microbatches(num_ranks, microbatch_tokens):
    rows, labels = corpus(120)
    mixed = {"labels": labels, "mixing": Mixing(0.4, "weights"), "microbatch_tokens": microbatch_tokens}
    alone = stream(rows, **mixed)
    ranks = [stream(rows, **mixed, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    num_empty = 0
    for step in islice(zip(alone, *ranks, strict=True), 40):
        (position, whole), shares = step[0], step[1:]
        assert {share[0] for share in shares} == {position}
        parts = [share[1] for share in shares]
        assert contents([batch for part in parts for batch in part]) == contents(whole)
        assert {len(part) for part in parts} == {-(-len(whole) // num_ranks)}  # no more of them than are needed
        num_empty += sum(not len(batch.row_id_B) for part in parts for batch in part)
    assert num_empty > 0 or num_ranks < 8  # there are steps of less than 8 rows


def test_the_ranks_of_a_step_have_equal_work():
    lengths = lognormal(20_000)
    for step in cut_epoch(lengths, tokens_per_step=25_000, seed=1, epoch=0)[:8]:
        pieces = split_step(lengths, step, 8192, num_ranks=4)
        sizes = [lengths.take(piece).padded() for piece in pieces]
        assert len(pieces) % 4 == 0 and max(sizes) <= 8192
        assert max(sizes) < 1.25 * np.mean(sizes)
