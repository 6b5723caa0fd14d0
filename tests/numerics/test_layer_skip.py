"""A student's start from a teacher: which layers, that copies are exact and complete, and what is refused."""

import re
from dataclasses import fields, replace

import pytest
import torch

from kdlab.errors import UserError
from kdlab.models.init import random_init
from kdlab.models.layer_rules import DEFAULTS, RULES, layers
from kdlab.models.layer_skip import layer_skip
from kdlab.models.transformer import Transformer, TransformerConfig

TEACHER = TransformerConfig(
    src_vocab_size=13,
    tgt_vocab_size=13,
    num_encoder_layers=6,
    num_decoder_layers=3,
    d_model=16,
    d_ff=32,
    num_heads=4,
    max_positions=40,
)
SHAPES = [
    dict(norm="post", tie="all"),
    dict(norm="pre", tie="decoder_softmax", softmax_bias=True, activation="gelu", tgt_vocab_size=11),
    dict(norm="pre", tie="all", activation="swiglu"),
    dict(norm="post", tie="none", softmax_bias=True, src_vocab_size=17),
]
RULE_TABLE = {
    # (layers of teacher, of student): every_n, last_of_block, spread, first_n, last_n
    (6, 3): ([0, 2, 4], [1, 3, 5], [0, 3, 5], [0, 1, 2], [3, 4, 5]),
    (12, 6): ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11], [0, 2, 4, 7, 9, 11], [0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]),
    (12, 3): ([0, 4, 8], [3, 7, 11], [0, 6, 11], [0, 1, 2], [9, 10, 11]),
    (24, 6): (
        *([0, 4, 8, 12, 16, 20], [3, 7, 11, 15, 19, 23], [0, 5, 9, 14, 18, 23]),
        *([0, 1, 2, 3, 4, 5], [18, 19, 20, 21, 22, 23]),
    ),
    (24, 3): ([0, 8, 16], [7, 15, 23], [0, 12, 23], [0, 1, 2], [21, 22, 23]),
    (5, 2): ([0, 2], [1, 4], [0, 4], [0, 1], [3, 4]),
    (8, 3): ([0, 2, 5], [1, 4, 7], [0, 4, 7], [0, 1, 2], [5, 6, 7]),
    (3, 3): ([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]),
    (6, 1): ([0], [5], [0], [0], [5]),
    (24, 1): ([0], [23], [0], [0], [23]),
}


def build(config, seed=1):
    """A model of which no tensor is like another: norms and biases too are drawn."""
    model = Transformer(config)
    random_init(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return model.eval()


def start(teacher, encoder="every_n", decoder="every_n", **changes):
    student = Transformer(replace(teacher.config, **changes))
    return student, layer_skip(student, 1, teacher, encoder=encoder, decoder=decoder)


@pytest.mark.parametrize("depths", RULE_TABLE, ids="{0[0]}->{0[1]}".format)
def test_t22_the_rules_choose_these_layers(depths):
    assert {rule: layers(rule, *depths) for rule in RULES} == dict(zip(RULES, RULE_TABLE[depths], strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_t22_any_depth_goes_to_any_lesser_depth(rule):
    for num_teacher in range(1, 30):
        for num_student in range(1, num_teacher + 1):
            chosen = layers(rule, num_teacher, num_student)
            assert len(chosen) == num_student and chosen == sorted(set(chosen))
            assert chosen[0] >= 0 and chosen[-1] < num_teacher
            if rule == "spread" and num_student > 1:
                assert (chosen[0], chosen[-1]) == (0, num_teacher - 1)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape['norm']}-{shape['tie']}")
def test_t23_every_tensor_is_the_one_of_the_teacher_that_the_report_names(shape):
    teacher = build(replace(TEACHER, **shape))
    student, report = start(teacher, "last_of_block", [2, 0], num_encoder_layers=3, num_decoder_layers=2)
    assert report["layers"] == {"encoder": {"of": 6, "chosen": [1, 3, 5]}, "decoder": {"of": 3, "chosen": [2, 0]}}
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert report["copied"].keys() == ours.keys() and report["random"] == []
    assert report["num_tensors"] == len(ours)
    for name, value in ours.items():
        assert torch.equal(value, theirs[report["copied"][name]]), name
        assert value.data_ptr() != theirs[report["copied"][name]].data_ptr(), "a copy, not the teacher's own"
    expected = {
        "encoder.2.around_ff.norm.bias": "encoder.5.around_ff.norm.bias",
        "decoder.0.cross_attention.kv_proj.weight": "decoder.2.cross_attention.kv_proj.weight",
        "decoder.1.feed_forward.fc1.bias": "decoder.0.feed_forward.fc1.bias",
        "src_embedding.weight": "src_embedding.weight",
    }
    expected |= {"softmax_bias": "softmax_bias"} if shape.get("softmax_bias") else {}
    expected |= {"encoder_norm.weight": "encoder_norm.weight"} if shape["norm"] == "pre" else {}
    assert expected.items() <= report["copied"].items()
    assert all(parameter.requires_grad for parameter in student.parameters()), "nothing is frozen"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape['norm']}-{shape['tie']}")
def test_t23_with_all_layers_the_student_is_the_teacher(shape, rule):
    teacher = build(replace(TEACHER, **shape))
    student, _ = start(teacher, rule, rule, dropout=0.3, max_positions=50)
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(0, 12, (3, 7), generator=generator)
    tgt = torch.randint(0, 10, (3, 9), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    logits = []
    for model in (teacher, student.eval()):
        hidden, head = model(src, mask, tgt).decoder_ND, model.head()
        logits.append(torch.nn.functional.linear(hidden, head.weight_VD, head.bias_V))
    assert torch.equal(*logits)


def test_t23_what_the_teacher_lacks_is_reported_as_random():
    teacher = build(TEACHER)
    student, report = start(teacher, softmax_bias=True, num_encoder_layers=2)
    assert report["random"] == ["softmax_bias"]
    assert len(report["copied"]) + 1 == report["num_tensors"] == len(student.state_dict())
    assert student.softmax_bias.abs().sum() == 0


def test_t22_a_list_may_repeat_layers_for_a_deeper_student():
    teacher = build(TEACHER)
    student, report = start(teacher, decoder=[0, 0, 1, 1, 2, 2], num_decoder_layers=6)
    assert report["copied"]["decoder.3.feed_forward.fc2.bias"] == "decoder.1.feed_forward.fc2.bias"
    assert len(student.decoder) == 6


@pytest.mark.parametrize(
    ("rules", "changes", "said"),
    [
        (
            {},
            dict(d_model=8, d_ff=16),
            r"d_model is 8 and the teacher's 16, d_ff is 16 and the teacher's 32; choose",
        ),
        ({}, dict(d_model=8), r"choose init=random, a student preset .* or write student\.d_model=16$"),
        ({}, dict(num_heads=2), r"num_heads is 2 and the teacher's 4"),
        ({}, dict(activation="gelu"), r"activation is gelu and the teacher's relu"),
        ({}, dict(norm="pre"), r"norm is pre and the teacher's post"),
        ({}, dict(tie="decoder_softmax"), r"tie is decoder_softmax and the teacher's all"),
        (
            {},
            dict(src_vocab_size=14, tgt_vocab_size=14),
            r"src_vocab_size is 14 and the teacher's 13, tgt_vocab_size is 14",
        ),
        (
            {},
            dict(num_decoder_layers=4),
            r"the teacher's 3 decoder layers, but the student has 4; .*=\[0,0,1,2\], or",
        ),
        (dict(encoder=[0, 1]), {}, r"init\.encoder=\[0,1\] names 2 layers, but the student has 6 encoder layers"),
        (dict(decoder=[0, 1, 3]), {}, r"init\.decoder=\[0,1,3\] names layer 3, but the teacher's decoder has 3"),
        (dict(decoder=[0, 1, -1]), {}, r"names layer -1"),
        (dict(encoder="evry_n"), {}, r"init\.encoder=evry_n is no rule .*; did you mean 'every_n'\?; write one of"),
    ],
    ids=str,
)
def test_t23_what_does_not_fit_is_refused_in_one_message(rules, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        start(build(TEACHER), **rules, **changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("choose") <= 1


def test_t23_a_bias_that_the_student_has_no_place_for_is_refused():
    with pytest.raises(UserError, match=r"or write student\.softmax_bias=true$"):
        start(build(replace(TEACHER, softmax_bias=True)), softmax_bias=False)


def test_the_rules_know_the_defaults_of_the_architecture():
    defaults = {field.name: field.default for field in fields(TransformerConfig)}
    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS


def test_the_start_is_said_in_one_line(capfd):
    start(build(TEACHER), num_encoder_layers=2, num_decoder_layers=1)
    said = capfd.readouterr().err
    assert re.fullmatch(
        r"kdlab: start from the teacher's layers: encoder \[0, 3\] of 6, decoder \[0\] of 3; "
        r"45 tensors copied, 0 random\n",
        said,
    )
