"""Pseudo-labels come back to their rows, and labels of other rows are refused."""

import numpy as np
import pytest

from kdlab.data.arrow import TableWriter
from kdlab.data.cleaning import hash_lines
from kdlab.data.labels import LabelWriter, PseudoLabels
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
