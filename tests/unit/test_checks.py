"""The parts of kdlab.check that need no models: its table, its reference by hand, what it compares."""

import math

import numpy as np
import pytest
import torch

from kdlab.checks import reference, table, training
from kdlab.checks.material import FirstPairs
from kdlab.checks.probe import Measured
from kdlab.checks.sentences import Sentences, stand_in
from kdlab.checks.table import Finding, does_not_apply
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.nll import Nll
from kdlab.objectives.word_kd import WordKD
from kdlab.teachers.frozen import FrozenTeacher


def test_a_finding_holds_up_to_its_limit_and_not_a_number_holds_nothing():
    holds = {found: Finding("a", found, 0.5, "x").holds for found in (0.0, 0.5, 0.51, math.inf)}
    assert holds == {0.0: True, 0.5: True, 0.51: False, math.inf: False}
    assert Finding("a", math.nan, 0.5, "x").holds is False
    assert math.isnan(table.worst(0.1, math.nan, 0.2)) and table.worst(0.1, 0.2) == 0.2
    assert does_not_apply("a", "no teacher").holds is None


def test_the_table_is_aligned_and_tells_failures():
    findings = [
        Finding("a", 1e-9, 1e-4, "x"),
        Finding("bb", math.inf, 0.0, "y", "it is wrong."),
        does_not_apply("c", "z"),
    ]
    lines = table.render(findings).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["yes", "NO", "does not apply"]
    text = table.report("toy/default", {"corpus": "finished"}, findings)
    assert "- corpus: finished" in text and "bb fails: it is wrong. Found inf, at most 0: y." in text
    assert [row["found"] for row in table.as_json(findings)] == [1e-9, "inf", 0.0]


def test_the_reference_by_hand():
    """Two tokens: q = (1/4, 3/4), p = (1/2, 1/2) at temperature 2, so logits are twice the log-probabilities."""
    z, t = 2 * torch.tensor([1.0, 3.0]).double().log(), torch.zeros(2).double()
    value, gradient = reference._term(WordKD(2.0), z, t, 0)
    assert value == pytest.approx(4 * 0.5 * (math.log(2.0) + math.log(2.0 / 3.0)))
    assert gradient.tolist() == pytest.approx([2 * (0.25 - 0.5), 2 * (0.75 - 0.5)])
    value, gradient = reference._term(WordKD(2.0, t_squared=False, form="cross_entropy"), z, t, 0)
    assert value == pytest.approx(0.5 * (math.log(4.0) + math.log(4.0 / 3.0)))
    assert gradient.tolist() == pytest.approx([0.5 * (0.25 - 0.5), 0.5 * (0.75 - 0.5)])
    value, gradient = reference._term(Nll(label_smoothing=0.2), z, None, 0)  # softmax(z) = (1/10, 9/10)
    assert value == pytest.approx(0.9 * math.log(10.0) + 0.1 * math.log(10.0 / 9.0))
    assert gradient.tolist() == pytest.approx([0.1 - 0.9, 0.9 - 0.1])


def test_distance_is_relative_and_sees_what_is_missing():
    gradient = {"w": torch.tensor([3.0, 4.0])}
    one = Measured(2.0, {"nll": 0.1}, gradient)
    assert one.distance(one) == 0.0
    assert one.distance(Measured(4.0, {"nll": 0.1}, gradient)) == pytest.approx(0.5)
    assert one.distance(Measured(2.0, {"nll": 0.3}, gradient)) == pytest.approx(0.2)
    assert one.distance(Measured(2.0, {"nll": 0.1}, {"w": torch.tensor([3.0, 5.0])})) == pytest.approx(34**-0.5)
    assert math.isnan(one.distance(Measured(2.0, {"nll": 0.1, "kd": 0.0}, gradient)))
    assert math.isnan(one.distance(Measured(math.nan, {"nll": 0.1}, gradient)))


def test_every_leaf_that_differs_is_counted():
    one = {"a": [torch.zeros(2), 1], "b": {"c": "x"}}
    assert training._compare(one, {"a": [torch.zeros(2), 1], "b": {"c": "x"}}) == (3, 0)
    assert training._compare(one, {"a": [torch.ones(2), 2], "b": {"c": "x"}, "d": 1}) == (4, 3)
    assert training._compare(one["a"], one["a"][:1]) == (1, 1)
    assert training._compare(torch.zeros(2), torch.zeros(2, 1)) == (1, 1)


def test_first_pairs_go_on_to_the_next_source():
    toy = [{"_target_": "kdlab.data.corpus.Toy", "split": "train", "num_lines": count, "seed": 1} for count in (3, 5)]
    assert len(list(FirstPairs(toy, 5).lines())) == 5
    assert list(FirstPairs(toy, 5).lines())[:3] == list(FirstPairs(toy, 3).lines())


def test_stand_in_labels_are_the_neighbours_targets():
    ids = [np.array([5, 0]), np.array([6, 7, 0]), np.array([8, 0])]
    labels = stand_in(Sentences(np.arange(3), ids, ids))
    assert labels.has_label.all() and labels.tgt_len.tolist() == [3, 2, 2]
    assert labels.tgt_ids(np.array([0, 2]))[1].tolist() == [5, 0]


def test_every_layer_of_an_int8_teacher_is_in_eval_mode():
    model = Transformer(TransformerConfig(20, 20, 1, 1, 16, 32, 2, dropout=0.5))
    FrozenTeacher(model, precision="int8")
    assert not any(module.training for module in model.modules())
