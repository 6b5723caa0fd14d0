"""The low-data regime: exact, nested, seeded shares of gold targets and pseudo-labels, independent of each other."""

import numpy as np
import pytest

from kdlab.data.batching import StepStream
from kdlab.data.mixing import Mixing
from kdlab.data.subset import WHOLE, Subset
from kdlab.errors import UserError
from kdlab.stages.train_model import _tell_rows
from tests.unit.test_batching import FakeLabels, FakeRows

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
NUM_ROWS = 3000
ROW_ID = 1000 + np.arange(NUM_ROWS, dtype=np.int64)  # as those of FakeRows
EVERYWHERE = np.ones(NUM_ROWS, dtype=bool)


@pytest.mark.parametrize("which", ["gold", "pseudo"])
def test_shares_are_exact_and_nested(which):
    available = np.arange(NUM_ROWS) % 3 > 0  # 2,000 rows
    inner = np.zeros(NUM_ROWS, dtype=bool)
    for share in SHARES:
        marks = getattr(Subset(**{f"{which}_share": share}), which)(ROW_ID, available)
        assert marks.sum() == round(share * 2000)
        assert not (marks & ~available).any() and not (inner & ~marks).any()
        inner = marks
    other = getattr(Subset(**{f"{which}_share": 0.25}, seed=2), which)(ROW_ID, available)
    first = getattr(Subset(**{f"{which}_share": 0.25}), which)(ROW_ID, available)
    assert abs((other & first).sum() - 500 / 4) < 40  # another seed, other rows


def test_a_row_is_chosen_by_its_id_and_equal_shares_are_equal_rows():
    subset = Subset(0.05, 0.05)
    gold = subset.gold(ROW_ID, EVERYWHERE)
    assert (gold == subset.pseudo(ROW_ID, EVERYWHERE)).all()
    order = np.random.default_rng(0).permutation(NUM_ROWS)
    assert (subset.gold(ROW_ID[order], EVERYWHERE) == gold[order]).all()
    assert ROW_ID[gold][:5].tolist() == [1005, 1087, 1095, 1096, 1107]  # a change would change every published run


def test_the_subset_is_no_draw_of_an_epoch():
    """With one seed for both, the rows of the subset would else all draw gold in one of the epochs."""
    rows = Subset(0.1).gold(ROW_ID, EVERYWHERE)
    for epoch in range(-3, 4):
        if epoch != -1:
            pseudo = Mixing(0.5).choose(ROW_ID, epoch, 1, EVERYWHERE)[rows]
            assert 0.3 < pseudo.mean() < 0.7, epoch


def test_a_share_of_nothing_is_refused():
    with pytest.raises(UserError, match="gold_share=0.0001 of 3,000 rows is none"):
        Subset(gold_share=0.0001).gold(ROW_ID, EVERYWHERE)
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"pseudo_share must be in \(0, 1\]"):
            Subset(pseudo_share=bad).pseudo(ROW_ID, EVERYWHERE)


def test_of_no_labels_there_is_no_share():
    """An untrained teacher may leave all rows without; they keep their gold, as without a share."""
    assert not Subset(pseudo_share=0.5).pseudo(ROW_ID, ~EVERYWHERE).any()


def stream(subset=WHOLE, labelled=EVERYWHERE, mixing=None, **more):
    """Rows whose gold has 5 tokens and whose label has 7."""
    rows = FakeRows([[8, 8, 8, 0]] * NUM_ROWS, [[8, 8, 8, 8, 0]] * NUM_ROWS)
    labels = FakeLabels([[8] * 6 + [0] if has else [] for has in labelled]) if mixing else None
    pads = {"src_pad_id": 9, "tgt_pad_id": 9}
    return StepStream(rows, 3, 100, 100, **pads, labels=labels, mixing=mixing or Mixing(), subset=subset, **more)


def test_an_epoch_holds_the_rows_of_the_subset_alone():
    labelled = np.arange(NUM_ROWS) % 2 == 0
    gold = Subset(0.1).gold(ROW_ID, EVERYWHERE)
    pseudo = Subset(0.0, 0.2, 5).pseudo(ROW_ID, labelled)
    assert (gold.sum(), pseudo.sum()) == (300, 300) and 0 < (gold & pseudo).sum() < 60
    epoch = stream(Subset(0.1)).epoch(0)
    assert sorted(np.concatenate(epoch.steps)) == np.flatnonzero(gold).tolist()
    for mixing in (Mixing(0.3, "weights"), Mixing(0.3, "sampling")):
        both = stream(Subset(0.1, 0.2, 5), labelled, mixing)
        gold5 = Subset(0.1, 1.0, 5).gold(ROW_ID, EVERYWHERE)
        epoch = both.epoch(2)
        assert sorted(np.concatenate(epoch.steps)) == np.flatnonzero(gold5 | pseudo).tolist()
        assert not (epoch.takes_gold & ~gold5).any() and not (epoch.takes_pseudo & ~pseudo).any()
        assert (epoch.takes_gold & epoch.takes_pseudo).any() == (mixing.mix_by == "weights")
        assert (both.epoch(3).takes_gold != epoch.takes_gold).any() == (mixing.mix_by == "sampling")


@pytest.mark.parametrize("mixing", [Mixing(0.0), Mixing(0.0, "weights")])
def test_gold_that_no_term_reads_fills_no_step(mixing):
    """5 % of the labels and seq_kd: else 19 of 20 tokens of a step would be gold that teaches nothing."""
    subset = Subset(pseudo_share=0.05)
    epoch = stream(subset, EVERYWHERE, mixing, reads_gold=False).epoch(0)
    assert not epoch.takes_gold.any() and epoch.takes_pseudo.sum() == 150
    assert sorted(np.concatenate(epoch.steps)) == np.flatnonzero(subset.pseudo(ROW_ID, EVERYWHERE)).tolist()
    assert stream(subset, ~EVERYWHERE, mixing, reads_gold=False).epoch(0).takes_gold.all()


def test_equal_shares_keep_the_mixture(capsys):
    """The deck's low-data regime: 5 % of gold and of pseudo-labels, one to two."""
    whole = stream(mixing=Mixing(0.34)).epoch(0)
    low = stream(Subset(0.5, 0.5), mixing=Mixing(0.34)).epoch(0)
    chosen = Subset(0.5).gold(ROW_ID, EVERYWHERE)
    assert (low.takes_gold == (whole.takes_gold & chosen)).all() and (
        low.takes_pseudo == (whole.takes_pseudo & chosen)
    ).all()
    assert low.takes_gold.sum() / 1500 == pytest.approx(0.34, abs=0.03)
    _tell_rows(stream(mixing=Mixing(0.34)))
    assert capsys.readouterr().err == ""
    _tell_rows(stream(Subset(0.5, 0.5), mixing=Mixing(0.34)))
    said = capsys.readouterr().err
    assert "1,500 of 3,000 training rows are used" in said and "mix=" not in said


def test_unequal_shares_say_what_became_of_the_mixture(capsys):
    _tell_rows(stream(Subset(1.0, 0.05), mixing=Mixing(0.34)))  # every row is used
    said = capsys.readouterr().err
    assert "mix=0.34, but about 96.7% of an epoch is gold" in said and "rows are used" not in said
    labelled = np.arange(NUM_ROWS) % 5 > 0
    _tell_rows(stream(Subset(0.05), labelled, Mixing(0.34)))
    said = capsys.readouterr().err
    assert "mix=0.34, but " in said and "mix_by=weights" in said
    _tell_rows(stream(Subset(0.05), labelled, Mixing(0.34, "weights")))
    said = capsys.readouterr().err
    assert "150 gold targets and 2,400 pseudo-labels" in said and "mix=" not in said
