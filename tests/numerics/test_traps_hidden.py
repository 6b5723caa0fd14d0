"""Traps of hidden states, layers and a start from the teacher, each also with planted defects."""

import pytest
import torch
import torch.nn.functional as F

from kdlab.errors import UserError
from kdlab.models import layer_rules, layer_skip
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives import hidden, hidden_cosine
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.hidden_mse import HiddenMse
from kdlab.objectives.objective import WeightedTerm
from kdlab.teachers.frozen import FrozenTeacher
from tests.numerics import step as steps
from tests.numerics.step import WHOLE, microbatches, model
from tests.traps import trap

(BATCH,) = microbatches(WHOLE)
ARGS = (BATCH.src_BS, BATCH.src_mask_BS, BATCH.targets.tgt_in_RT, BATCH.targets.source_R, BATCH.targets.mask_RT)
NO_MAPS = hidden.projections({}, 1, 1, {})


def sum_of(term, out, seen, on="all"):
    weighted = {"it": WeightedTerm(1.0, on, "tgt_token", term)}
    return hidden.reduce_hidden(weighted, {"it": 1.0}, BATCH, out, seen, NO_MAPS).loss


def drawn(seed=1, **changes):
    """A model of which no two tensors are alike."""
    settings = {"norm": "pre", "softmax_bias": True, "dropout": 0.4, **changes}
    net = Transformer(TransformerConfig(12, 12, 2, 2, 8, 12, 2, **settings))
    random_init(net, seed)
    with torch.no_grad():
        for value in net.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    return net


def row_by_row(net, stack, row):
    """What the last layer of a stack says of one sentence alone."""
    src, tgt = (torch.tensor(side[row])[None] for side in (steps.SRC, steps.TGT))
    tgt_in = torch.cat([torch.full((1, 1), steps.PAD), tgt[:, :-1]], 1)
    return getattr(net(src, torch.ones_like(src, dtype=torch.bool), tgt_in), f"{stack}_layers")[-1]


def flattened(patch):
    def wrong(self, a, b):
        return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).expand(len(a)).neg() + 1.0

    patch.setattr(HiddenCosine, "__call__", wrong)


def mask_of_the_other_side(patch):
    positions = hidden._positions

    def wrong(batch, stack, on):
        size = int((batch.src_mask_BS if stack == "encoder" else batch.targets.mask_RT).sum())
        return positions(batch, "decoder" if stack == "encoder" else "encoder", on).clamp(max=size - 1)

    patch.setattr(hidden, "_positions", wrong)


def origin_ignored(patch):
    positions = hidden._positions
    patch.setattr(hidden, "_positions", lambda batch, stack, on: positions(batch, stack, "all"))


@trap(flattened, mask_of_the_other_side, origin_ignored, paths=("hidden",))
def test_t19_hidden_terms_are_sums_over_the_real_positions_of_single_sentences(path):
    student, teacher = drawn(1).eval(), drawn(2).eval()  # states of different lengths: no norm behind a layer
    out, seen = student(*ARGS), teacher(*ARGS)
    for stack in ("encoder", "decoder"):
        for on in ("gold", "pseudo", "all"):
            rows = [row for row in WHOLE[0] if on == "all" or steps.IS_PSEUDO[row] == (on == "pseudo")]
            expected = sum(
                float(1 - F.cosine_similarity(a, b, dim=0))
                for row in rows
                for a, b in zip(*(row_by_row(net, stack, row).detach() for net in (student, teacher)), strict=True)
            )
            got = sum_of(HiddenCosine(stack), out, seen, on)
            assert got.item() == pytest.approx(expected, rel=1e-4)
    for factor, value in ((3.0, 0.0), (-1.0, 2.0)):
        a = torch.tensor([[3.0, 4.0], [1.0, 0.1]])
        torch.testing.assert_close(HiddenCosine()(factor * a, a), torch.full((2,), value))


def skipped_silently(patch):
    projections = hidden.projections

    def wrong(terms, d_student, d_teacher, layers):
        return projections(terms if d_student == d_teacher else {}, d_student, d_teacher, layers)

    patch.setattr(hidden, "projections", wrong)


@trap(skipped_silently, paths=("hidden",))
def test_t20_other_widths_without_a_projection_are_refused(path):
    layers = {"decoder": (2, 2)}
    terms = {"cos": WeightedTerm(1.0, "all", "tgt_token", HiddenCosine())}
    with pytest.raises(UserError, match="width 4, the teacher's 6"):
        hidden.projections(terms, 4, 6, layers)
    terms = {"cos": WeightedTerm(1.0, "all", "tgt_token", HiddenCosine(layers="spread", projection=True))}
    assert [p.shape for p in hidden.projections(terms, 4, 6, layers).parameters()] == [(6, 4), (6, 4)]


def embedding_first(patch):
    stack_of = hidden._stack
    patch.setattr(hidden, "_stack", lambda output, stack: (stack_of(output, stack)[0], *stack_of(output, stack)[:-1]))


@trap(embedding_first, paths=("hidden",))
def test_t21_layers_are_counted_from_the_first_layers_output(path):
    """Against what hooks see of the named layers."""
    seen = {}
    student, teacher = model(1), model(2)
    for who, net in (("student", student), ("teacher", teacher)):
        for i, layer in enumerate(net.decoder):
            layer.register_forward_hook(lambda _, __, out, key=(who, i): seen.update({key: out}))
    outputs = student(*ARGS), teacher(*ARGS)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        got = sum_of(HiddenMse(layers=[[i, j]]), *outputs)
        expected = (seen["student", i] - seen["teacher", j]).square().mean(-1).sum()
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(sum_of(HiddenMse(), *outputs), expected)  # the last with the last


def always_the_first(patch):
    patch.setattr(layer_rules, "RULES", dict.fromkeys(layer_rules.RULES, lambda N, n: list(range(n))))
    patch.setattr(hidden_cosine, "layer_pairs", lambda layers, n, N: [(i, i) for i in range(n)])


def the_ancestors_range(patch):
    rule = lambda N, n: list(range(0, n, max(1, N // n)))  # noqa: E731
    patch.setattr(layer_rules, "RULES", dict.fromkeys(layer_rules.RULES, rule))


@trap(always_the_first, the_ancestors_range, paths=("hidden",))
def test_t22_layers_are_spread_over_the_whole_teacher(path):
    for depths, every_n, last in (((6, 3), [0, 2, 4], [1, 3, 5]), ((12, 3), [0, 4, 8], [3, 7, 11])):
        assert layer_rules.layers("every_n", *depths) == every_n
        assert layer_rules.layers("last_of_block", *depths) == last
        assert hidden_cosine.HiddenCosine(layers="spread").pairs(*depths[::-1]) == list(enumerate(last))
    spread = layer_rules.layers("spread", 24, 6)
    assert (len(spread), spread[0], spread[-1]) == (6, 0, 23)


def spoiled_start(patch, spoil):
    start = layer_skip.layer_skip

    def wrong(student, seed, teacher, **rules):
        report = start(student, seed, teacher, **rules)
        spoil(student, teacher)
        return report

    patch.setattr(layer_skip, "layer_skip", wrong)


def norms_not_copied(patch):
    spoiled_start(patch, lambda student, teacher: student.decoder_norm.reset_parameters())


def embeddings_not_copied(patch):
    spoiled_start(patch, lambda student, teacher: student.src_embedding.reset_parameters())


@trap(norms_not_copied, embeddings_not_copied, paths=("hidden",))
def test_t23_with_all_its_layers_the_student_is_the_teacher(path):
    teacher = drawn().eval()
    student = Transformer(teacher.config)
    report = layer_skip.layer_skip(student, 2, teacher, encoder="every_n", decoder="every_n")
    assert torch.equal(student.eval()(*ARGS).decoder_ND, teacher(*ARGS).decoder_ND)
    assert torch.equal(student.head().weight_VD, teacher.head().weight_VD)
    assert sorted([*report["copied"], *report["random"]]) == sorted(student.state_dict())


def first_layer_shared(patch):
    spoiled_start(patch, lambda student, teacher: setattr(student, "encoder", teacher.encoder))


def embedding_shared(patch):
    spoiled_start(patch, lambda student, teacher: setattr(student, "src_embedding", teacher.src_embedding))


@trap(first_layer_shared, embedding_shared, paths=("hidden",))
def test_t15_freezing_the_teacher_leaves_the_student_alone(path):
    teacher, student = drawn(), drawn(3)
    layer_skip.layer_skip(student, 2, teacher, encoder="every_n", decoder="every_n")
    student.train()
    FrozenTeacher(teacher)
    assert all(part.training for part in student.modules()) and all(p.requires_grad for p in student.parameters())
    assert not torch.equal(student(*ARGS).decoder_ND, student(*ARGS).decoder_ND)  # dropout is on
    theirs = {p.data_ptr() for p in teacher.parameters()}
    assert not theirs & {p.data_ptr() for p in student.parameters()}


def inference_mode(patch):
    call = FrozenTeacher.__call__
    patch.setattr(FrozenTeacher, "__call__", torch.inference_mode()(call))


@trap(inference_mode, paths=("hidden",))
def test_t14_what_a_teacher_says_can_be_saved_for_the_gradient(path):
    student = model(1)
    seen, out = FrozenTeacher(model(2))(BATCH), student(*ARGS)
    assert not any(said.is_inference() for said in (seen.decoder_ND, *seen.encoder_layers, *seen.decoder_layers))
    (sum_of(HiddenMse(), out, seen) + sum_of(HiddenCosine(), out, seen)).backward()
    assert float(steps.flat(student).norm()) > 0
