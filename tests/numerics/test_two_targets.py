"""mix_by=weights: one source, encoded once, for its gold target and its pseudo-label; the same as in two batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdlab.data.batching import StepStream, collate
from kdlab.data.mixing import Mixing
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.types import Side
from tests.numerics.step import PAD, SRC, TGT, model, ragged
from tests.unit.test_batching import FakeLabels

PADS = {"src_pad_id": PAD, "tgt_pad_id": PAD}
HAS_LABEL = np.arange(len(SRC)) % 4 > 0
LABELS = [ids if has else ids[:0] for ids, has in zip(ragged(9), HAS_LABEL, strict=True)]
ALL = np.arange(len(SRC))


def lengths(ids):
    return np.array([len(row) for row in ids], np.int32)


class Rows(SimpleNamespace):
    def __len__(self):
        return len(self.row_id)


ROWS = Rows(
    row_id=ALL,
    src_len=lengths(SRC),
    tgt_len=lengths(TGT),
    src_ids=lambda index: [SRC[i] for i in index],
    tgt_ids=lambda index: [TGT[i] for i in index],
)
PSEUDO = FakeLabels(LABELS)
OBJECTIVE = Objective(
    {
        "gold": WeightedTerm(1.0, "gold", "tgt_token", Nll(), mixed=True),
        "pseudo": WeightedTerm(2.0, "pseudo", "tgt_token", Nll(), mixed=True),
        "kd": WeightedTerm(0.5, "all", "tgt_token", WordKD(2.0)),
    },
    mix=0.3,
    mix_by="weights",
)


def backward(batches):
    """(loss, gradient, positions that went through the encoder) of one step cut into these batches."""
    student, teacher = model(1).eval(), FrozenTeacher(model(2))
    encoded = []
    student.encoder[0].register_forward_hook(lambda module, args, out: encoded.append(len(args[0])))
    scales, loss = OBJECTIVE.scales(OBJECTIVE.units(batches)), 0.0
    for batch in batches:
        targets = batch.targets
        out = student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
        with teacher.guide(batch) as (guide, _):
            reduced = reduce(
                OBJECTIVE.active, scales, targets, Side(out.decoder_ND, student.head()), guide, chunk_size=7
            )
        reduced.loss.backward()
        loss += float(reduced.loss.detach())
    gradient = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return loss, gradient, encoded


def test_two_targets_on_one_source_are_two_batches():
    stream = StepStream(ROWS, 1, 10_000, 10_000, **PADS, labels=PSEUDO, mixing=Mixing(OBJECTIVE.mix, OBJECTIVE.mix_by))
    (both,) = stream.microbatches(stream.epoch(0), 0)
    labelled = np.flatnonzero(HAS_LABEL)
    nowhere = np.zeros(len(SRC), bool)
    apart = [
        collate(ROWS, ALL, **PADS),
        collate(ROWS, labelled, **PADS, labels=PSEUDO, takes_gold=nowhere, takes_pseudo=HAS_LABEL),
    ]
    assert len(both.targets.source_R) == len(SRC) + len(labelled) == sum(len(b.targets.source_R) for b in apart)
    loss, gradient, encoded = backward([both])
    expected, expected_gradient, twice = backward(apart)
    num_tokens = int(lengths(SRC).sum())
    assert encoded == [num_tokens], "every source is encoded once"
    assert sum(twice) == num_tokens + int(lengths(SRC)[labelled].sum())
    assert loss == pytest.approx(expected, rel=1e-6) and loss > 1
    assert gradient.keys() == expected_gradient.keys()
    for name, value in gradient.items():
        torch.testing.assert_close(value, expected_gradient[name], rtol=1e-4, atol=1e-6, msg=name)
