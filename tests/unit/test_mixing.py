"""Which targets the rows of an epoch bring."""

import numpy as np
import pytest

from kdlab.data.mixing import Mixing, uniform
from kdlab.errors import UserError

ROWS = np.arange(100_000, dtype=np.int64)
EVERYWHERE = np.ones(len(ROWS), dtype=bool)


def test_the_share_of_gold_is_mix_in_every_epoch():
    for mix in (0.1, 0.34, 0.75):
        for epoch in range(3):
            share = 1 - Mixing(mix, "sampling").choose(ROWS, epoch, 7, EVERYWHERE).mean()
            assert abs(share - mix) < 4 * (mix * (1 - mix) / len(ROWS)) ** 0.5


def test_the_ends_are_exact():
    assert not Mixing(1.0, "sampling").choose(ROWS, 0, 1, EVERYWHERE).any()
    assert Mixing(0.0, "sampling").choose(ROWS, 0, 1, EVERYWHERE).all()


def test_a_row_is_drawn_alone():
    mixing = Mixing(0.5, "sampling")
    all_rows = mixing.choose(ROWS, 3, 11, EVERYWHERE)
    some = np.array([5, 99_999, 17, 5])
    assert (mixing.choose(some, 3, 11, EVERYWHERE[:4]) == all_rows[some]).all()


def test_epochs_and_seeds_draw_independently():
    mixing = Mixing(0.5, "sampling")
    first = mixing.choose(ROWS, 0, 1, EVERYWHERE)
    for other in (mixing.choose(ROWS, 1, 1, EVERYWHERE), mixing.choose(ROWS, 0, 2, EVERYWHERE)):
        assert abs((first == other).mean() - 0.5) < 0.01
    assert not (uniform(ROWS, 1, 2) == uniform(ROWS, 2, 1)).any()


def test_draws_are_uniform_and_fixed_for_ever():
    numbers = uniform(ROWS, 0, 1)
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert abs(counts - 5000).max() < 350
    # a change here would change every published run
    assert uniform(np.array([0, 1, 2**40]), 3, 42).tolist() == [
        0.10017255093780764,
        0.529417311189351,
        0.2240116839290177,
    ]


def test_targets():
    has_label = np.array([True, False, True, False])
    row_id = np.arange(4)
    gold, pseudo = Mixing(0.0, "sampling").targets(row_id, 0, 1, has_label)
    assert (pseudo == has_label).all()  # a row without label uses its gold
    assert (gold == ~has_label).all()
    gold, pseudo = Mixing(0.3, "weights").targets(row_id, 0, 1, has_label)
    assert gold.all()
    assert (pseudo == has_label).all()
    gold, pseudo = Mixing(0.3, "sampling").targets(row_id, 0, 1, None)
    assert gold.all()
    assert not pseudo.any()


def test_wrong_values_are_refused():
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="mix must be in"):
            Mixing(bad, "sampling")
    with pytest.raises(UserError, match="write sampling or weights"):
        Mixing(0.5, "both")
