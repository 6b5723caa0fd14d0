"""Source noise: shares and distances as said, drawn token by token, for the student alone."""

from itertools import islice

import numpy as np
import pytest
import torch

from kdlab import compose
from kdlab.data.batching import StreamPosition, evaluation_batches
from kdlab.data.mixing import Mixing
from kdlab.data.noise import SourceNoise
from kdlab.data.tokenizer import UNK_ID
from kdlab.errors import ConfigError
from tests.unit.test_batching import PAD, contents, corpus, stream
from tests.unit.test_recipes import ALONE, STUDENT, changed, keys, plan

NOISE = SourceNoise(0.2, 0.1, 3)


def numbered(num_rows, length, eos=0):
    """Sources of the tokens 10, 11, 12, ... so that every token tells its position."""
    return [np.append(np.arange(10, 10 + length, dtype=np.int32), np.int32(eos)) for _ in range(num_rows)]


def test_shares_are_those_asked_for():
    src, rows = numbered(2000, 20), np.arange(2000)
    dropped = SourceNoise(drop=0.2)(src, rows, 0, 1)
    left = sum(len(ids) - 1 for ids in dropped) / 40_000
    assert left == pytest.approx(0.8, abs=0.01)
    assert all((np.diff(ids[:-1]) > 0).all() and ids[-1] == 0 for ids in dropped)  # the others stay in order
    masked = SourceNoise(mask=0.1)(src, rows, 0, 1)
    assert {len(ids) for ids in masked} == {21} and {ids.dtype for ids in masked} == {np.dtype(np.int32)}
    tokens = np.stack(masked)[:, :-1]
    assert (tokens == UNK_ID).mean() == pytest.approx(0.1, abs=0.01)
    assert ((tokens == UNK_ID) | (tokens == np.arange(10, 30))).all()
    both = SourceNoise(drop=0.2, mask=0.1)(src, rows, 0, 1)  # independent draws of one token
    assert sum((ids == UNK_ID).sum() for ids in both) / 40_000 == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize("distance", [1, 3])
def test_no_token_moves_further_than_the_distance(distance):
    shuffled = np.stack(SourceNoise(swap_distance=distance)(numbered(2000, 12), np.arange(2000), 0, 1))[:, :-1] - 10
    moved = np.abs(shuffled - np.arange(12))
    assert moved.max() == distance and (moved > 0).mean() > 0.2 * min(distance, 2)
    assert (np.sort(shuffled) == np.arange(12)).all()


def test_eos_stays_and_a_source_is_never_empty():
    src = [*numbered(300, 1), *numbered(300, 3), np.array([0], np.int32)]
    noisy = SourceNoise(0.95, 0.5, 2)(src, np.arange(len(src)), 0, 1)
    assert all(ids[-1] == 0 and (ids[:-1] != 0).all() for ids in noisy)
    assert {len(ids) for ids in noisy[:300]} == {2} and min(len(ids) for ids in noisy[300:600]) == 2
    assert noisy[600].tolist() == [0]
    assert NOISE([], np.array([], np.int64), 0, 1) == []  # a rank may have nothing in a step


def test_draws_depend_on_row_epoch_and_seed_alone():
    src, rows = numbered(50, 15), np.arange(50)
    noisy = NOISE(src, rows, 3, 7)
    some = [41, 3, 3, 0]
    for ids, row in zip(NOISE([src[row] for row in some], np.array(some), 3, 7), some, strict=True):
        assert ids.tolist() == noisy[row].tolist()
    for epoch, seed in ((4, 7), (3, 8)):
        other = NOISE(src, rows, epoch, seed)
        assert sum(a.tolist() == b.tolist() for a, b in zip(noisy, other, strict=True)) < 3
    assert len({tuple(ids) for ids in noisy}) > 47  # rows of the same text are not changed alike
    assert noisy[0].tolist() == [12, 1, 13, 15, 17, 14, 18, 16, 19, 1, 22, 23, 21, 0]  # for ever


def sources(batches, clean=False):
    """The sources of a step by row id."""
    found = {}
    for batch in batches:
        seen = batch.clean if clean else batch
        for row_id, ids, mask in zip(seen.row_id_B.tolist(), seen.src_BS, seen.src_mask_BS, strict=True):
            found[row_id] = ids[mask].tolist()
    return found


@pytest.mark.parametrize("mixing", [Mixing(0.4, "sampling"), Mixing(0.4, "weights")])
def test_resuming_and_microbatches_change_nothing_and_teachers_read_clean_sources(mixing):
    rows, labels = corpus(60)
    settings = {"labels": labels, "mixing": mixing, "noise": NOISE}
    noisy, plain = stream(rows, **settings), stream(rows, labels=labels, mixing=mixing)
    num_steps = len(noisy.epoch(0).steps)
    whole, differs = list(islice(noisy, num_steps + 2)), 0
    for (position, batches), (same, others) in zip(whole, plain, strict=False):
        assert position == same and contents(batches) == contents(others)
        assert sources(batches, clean=True) == sources(others)
        differs += sum(sources(batches)[row] != ids for row, ids in sources(others).items())
    assert differs > 40
    for microbatch_tokens in (1, 10**6):
        for (_, batches), (_, others) in zip(
            islice(stream(rows, microbatch_tokens=microbatch_tokens, **settings), num_steps), whole, strict=False
        ):
            assert sources(batches) == sources(others)
    resumed = next(iter(stream(rows, start=StreamPosition(1, 1), **settings)))
    assert sources(resumed[1]) == sources(whole[num_steps + 1][1])
    first = {row: ids for _, batches in whole[:num_steps] for row, ids in sources(batches).items()}
    again = {row: ids for _, batches in whole[num_steps:] for row, ids in sources(batches).items()}
    assert sum(first[row] == ids for row, ids in again.items()) < len(again) / 2  # anew in every epoch
    valid = list(evaluation_batches(rows, microbatch_tokens=300, src_pad_id=PAD, tgt_pad_id=PAD))
    assert sources(valid) == {1000 + row: ids.tolist() for row, ids in enumerate(rows.src)}


def test_noise_and_tag_together():
    rows, labels = corpus(60)
    settings = {"labels": labels, "mixing": Mixing(0.4), "noise": NOISE}
    for (_, tagged), (_, plain) in zip(
        islice(stream(rows, tag_id=95, **settings), 5), stream(rows, **settings), strict=False
    ):
        expected = sources(plain)
        for batch in plain:
            for row in batch.row_id_B[batch.targets.source_R[batch.targets.is_pseudo_R]].tolist():
                expected[row] = [95, *expected[row]]
        assert sources(tagged) == expected
        moved = [batch.to("cpu") for batch in tagged]
        assert all(torch.equal(a.clean.src_BS, b.clean.src_BS) for a, b in zip(moved, tagged, strict=True))


def test_students_alone_have_noise_and_encoder_states_cannot_be_compared_under_it():
    assert changed("source_noise=default") == STUDENT | set(ALONE)
    params = {step.name: step.params.get("source_noise") for step in plan("source_noise.drop=0.3")}
    assert {name for name, noise in params.items() if noise} == {"student", "baseline"}
    assert params["student"] == {"drop": 0.3, "mask": 0.0, "swap_distance": 0}
    cached = "teacher_cache=hidden"
    assert keys(cached)["cache_teacher"] == keys(cached, "source_noise=default")["cache_teacher"]
    cosine = "_target_:kdlab.objectives.hidden_cosine.HiddenCosine,stack:encoder,projection:true"
    cosine = f"+objective.terms.cos={{weight:1,on:gold,per:src_token,term:{{{cosine}}}}}"
    with pytest.raises(ConfigError, match="with source_noise=default the student reads other sources"):
        compose.compose(["source_noise=default", cosine])
    with pytest.raises(ConfigError, match=r"source_noise.drop must be in \[0, 1\), got 1.0"):
        compose.compose(["source_noise.drop=1"])
