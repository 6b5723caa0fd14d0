"""Pseudo-labels come back to their rows, and labels of other rows are refused."""

import numpy as np
import pytest

from kdlab.data.arrow import TableWriter
from kdlab.data.batching import StepStream
from kdlab.data.cleaning import hash_lines
from kdlab.data.identity import identities
from kdlab.data.labels import LabelWriter, PseudoLabels
from kdlab.data.mixing import Mixing
from kdlab.data.prepared import ROWS_SCHEMA, Rows
from kdlab.errors import UserError

ROW_ID = np.array([0, 2, 3, 7, 8])  # cleaning left gaps
SRC = ["eins", "zwei", "drei", "vier", "fünf"]


@pytest.fixture
def rows(tmp_path):
    ids = [[5, 0]] * 5
    with TableWriter(tmp_path / "rows.arrow", ROWS_SCHEMA) as writer:
        columns = (ROW_ID, hash_lines(SRC), ids, ids, SRC, SRC)
        writer.write(dict(zip(ROWS_SCHEMA.names, columns, strict=True)))
    return Rows.open(tmp_path / "rows.arrow")


def written(folder, positions, row_id=None, src_hash=None, tgt=None):
    """Labels of the given corpus positions, in two batches; some columns replaced."""
    row_id = ROW_ID[positions] if row_id is None else row_id
    src_hash = hash_lines([SRC[i] for i in positions]) if src_hash is None else src_hash
    tgt = [[9] * (i + 1) + [0] for i in positions] if tgt is None else tgt
    with LabelWriter(folder) as writer:
        for part in (slice(0, 2), slice(2, None)):
            text = [f"label {i}" for i in positions[part]]
            score = np.linspace(-1, 0, len(text))
            keys = {"row_id": row_id[part], "src_hash": src_hash[part]}
            writer.write(**keys, tgt=tgt[part], text=text, score=score, log_prob=score * 2)
    return folder


def test_labels_in_any_order_come_back_to_their_rows(tmp_path, rows):
    labels = PseudoLabels.open(written(tmp_path / "labels", [4, 0, 3]), rows)
    assert labels.has_label.tolist() == [True, False, False, True, True]
    assert labels.tgt_len.tolist() == [2, 0, 0, 5, 6] and labels.tgt_len.dtype == np.int32
    assert [ids.tolist() for ids in labels.tgt_ids(np.array([3, 0]))] == [[9, 9, 9, 9, 0], [9, 0]]
    assert labels.text(np.array([4, 3])) == ["label 4", "label 3"]


def test_no_labels_at_all_are_none(tmp_path, rows):
    assert not PseudoLabels.open(written(tmp_path / "labels", []), rows).has_label.any()


def test_a_row_without_label_cannot_be_fetched(tmp_path, rows):
    labels = PseudoLabels.open(written(tmp_path / "labels", [4, 0, 3]), rows)
    with pytest.raises(IndexError):
        labels.tgt_ids(np.array([0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src_hash": hash_lines([*SRC[1:], SRC[0]])}, "5 of 5 pseudo-labels have another source.*row id 0"),
        ({"row_id": np.roll(ROW_ID, 1)}, "5 of 5 pseudo-labels have another source"),
        ({"row_id": ROW_ID + np.array([0, 0, 1, 0, 0])}, "1 of 5 pseudo-labels have rows that the corpus"),
        ({"row_id": np.array([0, 2, 3, 7, 99])}, "1 of 5 pseudo-labels have rows that.*row id 99"),
        ({"tgt": [[5, 0], [5], [5, 0], [], [0]]}, "2 of 5 pseudo-labels have no EOS.*row id 2"),
    ],
    ids=["sources shifted by a line", "ids shifted by a line", "unknown id", "id beyond", "no EOS"],
)
def test_labels_of_other_rows_are_refused(tmp_path, rows, change, message):
    with pytest.raises(UserError, match=message):
        PseudoLabels.open(written(tmp_path / "labels", [0, 1, 2, 3, 4], **change), rows)


def test_two_labels_of_a_row_and_a_missing_file_are_refused(tmp_path, rows):
    with pytest.raises(UserError, match="1 of 3 pseudo-labels have a row that has another label.*label 0, row id 3"):
        PseudoLabels.open(written(tmp_path / "labels", [2, 1, 2]), rows)
    with pytest.raises(UserError, match="holds no pseudo-labels"):
        PseudoLabels.open(tmp_path, rows)


def several(folder, num, rows):
    """Labels of which row i has num[i]; the ids of its label k are [100 * i + k, ..., EOS], k + 2 of them."""
    row_id, src_hash, tgt, rank = [], [], [], []
    for at in reversed(range(len(num))):  # in an order that is not the corpus's
        row_id += [rows.row_id[at]] * num[at]
        src_hash += [rows.src_hash[at]] * num[at]
        tgt += [[100 * at + k] * (k + 1) + [0] for k in range(num[at])]
        rank += range(num[at])
    zeros = np.zeros(len(tgt))
    keys = {"row_id": np.array(row_id), "src_hash": np.array(src_hash, np.uint64), "rank": rank}
    with LabelWriter(folder) as writer:
        writer.write(**keys, tgt=tgt, text=[str(ids[0]) for ids in tgt], score=zeros, log_prob=zeros)
    return PseudoLabels.open(folder, rows)


def test_of_several_labels_each_epoch_draws_one_and_every_turn_sees_all(tmp_path, rows):
    num = [3, 1, 0, 4, 2]
    labels = several(tmp_path / "labels", num, rows)
    assert labels.several and labels.longest == 5 and labels.num_labels.tolist() == num
    assert labels.has_label.tolist() == [True, True, False, True, True]
    assert labels.tgt_len.tolist() == [2, 2, 0, 2, 2]  # as it is opened: the best ones
    index = np.array([0, 1, 3, 4])
    seen = []
    for epoch in range(24):
        drawn = labels.drawn(epoch, 5)
        ids = drawn.tgt_ids(index)
        assert drawn.tgt_len[index].tolist() == list(map(len, ids)) and drawn.tgt_len[2] == 0
        assert drawn.text(index) == [str(row[0]) for row in ids]
        seen.append([int(row[0]) % 100 for row in ids])
    for column, row in enumerate(index):
        for turn in range(0, 24, num[row]):
            assert sorted(epoch[column] for epoch in seen[turn : turn + num[row]]) == list(range(num[row]))
    again = several(tmp_path / "again", num, rows)
    assert [[int(row[0]) % 100 for row in again.drawn(epoch, 5).tgt_ids(index)] for epoch in range(24)] == seen
    other = [[int(row[0]) % 100 for row in labels.drawn(epoch, 6).tgt_ids(index)] for epoch in range(24)]
    assert other != seen


def many(tmp_path, number):
    """Rows 0 .. number - 1 with four labels each."""
    src = [str(i) for i in range(number)]
    with TableWriter(tmp_path / "many.arrow", ROWS_SCHEMA) as writer:
        ids = [[5, 0]] * number
        writer.write(
            dict(zip(ROWS_SCHEMA.names, (np.arange(number), hash_lines(src), ids, ids, src, src), strict=True))
        )
    rows = Rows.open(tmp_path / "many.arrow")
    return rows, several(tmp_path / "labels", [4] * number, rows)


def test_the_label_that_is_drawn_tells_nothing_of_gold_or_pseudo(tmp_path):
    rows, labels = many(tmp_path, 4000)
    for epoch in (0, 1):
        _, pseudo = Mixing(0.75, "sampling").targets(rows.row_id, epoch, 1, labels.has_label)
        drawn = np.array([int(ids[0]) % 100 for ids in labels.drawn(epoch, 1).tgt_ids(np.flatnonzero(pseudo))])
        counts = np.bincount(drawn, minlength=4)  # about 1000 rows, a quarter each
        assert len(counts) == 4 and abs(counts - len(drawn) / 4).max() < 70


def test_a_stream_trains_on_the_labels_of_its_epoch(tmp_path):
    rows, labels = many(tmp_path, 60)
    settings = {"tokens_per_step": 40, "microbatch_tokens": 60, "src_pad_id": 9999, "tgt_pad_id": 9999}
    stream = StepStream(rows, seed=1, labels=labels, mixing=Mixing(0.0, "sampling"), **settings)
    seen = []
    for number in range(4):
        epoch = stream.epoch(number)
        lengths, found = {}, {}
        for step in range(len(epoch.steps)):
            for batch in stream.microbatches(epoch, step):
                for row, ids, length in zip(
                    batch.row_id_B[batch.targets.source_R].tolist(),
                    batch.targets.tgt_out_RT.tolist(),
                    batch.targets.mask_RT.sum(1).tolist(),
                    strict=True,
                ):
                    found[row], lengths[row] = ids[0] % 100, length
        assert [lengths[row] for row in range(60)] == epoch.lengths.tgt.tolist()  # what the steps were cut by
        seen.append([found[row] for row in range(60)])
    assert all(sorted(row) == [0, 1, 2, 3] for row in zip(*seen, strict=True))


def test_labels_of_a_row_that_lie_apart_or_do_not_rise_are_refused(tmp_path, rows):
    for rank, message in (([0, 1, 1], "1 of 3.*another label.*label 2"), ([0, 2, 1], "1 of 3.*another label.*label 2")):
        with LabelWriter(tmp_path / f"labels{rank[1]}") as writer:
            keys = {"row_id": [2] * 3, "src_hash": [hash_lines([SRC[1]])[0]] * 3, "rank": rank}
            writer.write(**keys, tgt=[[5, 0]] * 3, text=["a"] * 3, score=[0.0] * 3, log_prob=[0.0] * 3)
        with pytest.raises(UserError, match=message):
            PseudoLabels.open(tmp_path / f"labels{rank[1]}", rows)


def test_a_cache_of_rows_with_several_labels_is_refused(tmp_path, rows):
    with pytest.raises(UserError, match="keeps one pseudo-label a row.*choose teacher_cache=none"):
        identities(None, several(tmp_path / "labels", [1, 2, 0, 0, 0], rows))
