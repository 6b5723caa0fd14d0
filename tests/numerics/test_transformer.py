"""The transformer: exact sizes, positions, masks, tying, and the incremental step against the full forward."""

from dataclasses import replace

import pytest
import torch

from kdlab.errors import UserError
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig, num_parameters, sinusoids

TINY = TransformerConfig(
    src_vocab_size=13,
    tgt_vocab_size=13,
    num_encoder_layers=2,
    num_decoder_layers=2,
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


def build(seed=1, **changes):
    model = Transformer(replace(TINY, **changes))
    random_init(model, seed)
    return model.eval()


def batch(model, seed=0):
    """Three padded sources with two target rows each."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(0, model.config.src_vocab_size - 1, (3, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    src[~mask] = model.config.src_vocab_size - 1
    tgt = torch.randint(0, model.config.tgt_vocab_size - 1, (6, 20), generator=generator)
    tgt[:, 0] = model.config.tgt_vocab_size - 1
    return src, mask, tgt, torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("layers", "d_model", "num_heads", "expected"),
    [
        ((1, 1), 256, 4, 18_259_200),
        ((3, 3), 256, 4, 21_945_600),
        ((1, 1), 1024, 16, 94_960_896),
        ((3, 3), 1024, 16, 153_746_688),
        ((24, 6), 1024, 16, 468_657_408),
    ],
)
def test_the_decks_architectures_have_their_exact_sizes(layers, d_model, num_heads, expected):
    sizes = (32_000, 32_000, *layers, d_model, 4 * d_model, num_heads)
    with torch.device("meta"):
        model = Transformer(TransformerConfig(*sizes, tie="decoder_softmax", softmax_bias=True))
        source, mask, targets = torch.zeros(2, 5).long(), torch.ones(2, 5).bool(), torch.zeros(3, 4).long()
        output = model(source, mask, targets, torch.tensor([0, 0, 1]))
    assert num_parameters(model) == expected
    assert output.decoder_ND.shape == (3 * 4, d_model)
    assert (len(output.encoder_layers), len(output.decoder_layers)) == layers


def test_positions_are_sines_then_cosines_from_zero():
    table = sinusoids(5, 6)
    assert table[0].tolist() == [0, 0, 0, 1, 1, 1]
    angle = torch.tensor([3.0, 3.0 / 10_000 ** (2 / 6), 3.0 / 10_000 ** (4 / 6)])
    torch.testing.assert_close(table[3], torch.cat([angle.sin(), angle.cos()]))


@pytest.mark.parametrize("shape", SHAPES)
def test_incremental_steps_equal_the_full_forward(shape):
    model = build(**shape)
    src, mask, tgt, source = batch(model)
    with torch.no_grad():
        full = model(src, mask, tgt, source)
        state = model.start(src, mask, beam_size=2)
        stepped = torch.stack([model.step(tgt[:, t], state) for t in range(tgt.shape[1])], dim=1)
        torch.testing.assert_close(stepped, full.decoder_ND.unflatten(0, tgt.shape), atol=1e-5, rtol=0)

        # half of the way with rows exchanged and the middle sentence dropped
        state, rows = model.start(src, mask, beam_size=2), torch.tensor([1, 0, 2, 3, 4, 4])
        for t in range(10):
            model.step(tgt[:, t], state)
        state.reorder(rows)
        state.keep(torch.tensor([0, 2]))
        kept = torch.cat([tgt[rows][:, :10], tgt[:, 10:]], dim=1)[[0, 1, 4, 5]]
        stepped = torch.stack([model.step(kept[:, t], state) for t in range(10, 20)], dim=1)
        expected = model(src, mask, kept, torch.tensor([0, 0, 2, 2])).decoder_ND.unflatten(0, kept.shape)[:, 10:]
        torch.testing.assert_close(stepped, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sentence_does_not_depend_on_its_neighbours_padding(shape):
    model = build(**shape)
    src, mask, tgt, source = batch(model)
    with torch.no_grad():
        together = model(src, mask, tgt, source)
        alone = model(src[1:2, :4], mask[1:2, :4], tgt[2:4, :9], torch.tensor([0, 0]))
        other = src.clone()
        other[~mask] = 3
        repadded = model(other, mask, tgt, source)
    torch.testing.assert_close(
        alone.decoder_ND.unflatten(0, (2, -1)), together.decoder_ND.unflatten(0, tgt.shape)[2:4, :9], atol=2e-6, rtol=0
    )
    torch.testing.assert_close(
        repadded.decoder_ND.unflatten(0, tgt.shape), together.decoder_ND.unflatten(0, tgt.shape), atol=1e-6, rtol=0
    )


def test_the_decoder_does_not_look_ahead():
    model = build()
    src, mask, tgt, source = batch(model)
    changed = tgt.clone()
    changed[:, 8:] = 2
    with torch.no_grad():
        a, b = (model(src, mask, ids, source).decoder_ND.unflatten(0, tgt.shape) for ids in (tgt, changed))
    torch.testing.assert_close(a[:, :8], b[:, :8], atol=1e-6, rtol=0)
    assert (a[:, 8:] - b[:, 8:]).abs().max() > 0.1


def test_a_source_given_once_equals_the_source_repeated():
    model = build().train()
    model.config = replace(model.config, dropout=0.0)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    src, mask, tgt, source = batch(model)
    shared = model(src, mask, tgt, source).decoder_ND
    repeated = model(src[source], mask[source], tgt).decoder_ND
    identity = model(src[source], mask[source], tgt, torch.arange(6)).decoder_ND
    torch.testing.assert_close(shared, repeated, atol=1e-6, rtol=0)
    assert torch.equal(identity, repeated)
    weight = model.decoder[0].cross_attention.kv_proj.weight
    (one,), (other,) = (torch.autograd.grad(x.square().sum(), weight) for x in (shared, repeated))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_autocast_trains_and_stays_near_fp32(shape):
    model = build(**shape)
    src, mask, tgt, source = batch(model)
    mask[1] = False  # a source of padding alone must give no NaN
    fp32 = model(src, mask, tgt, source).decoder_ND
    with torch.autocast("cpu", torch.bfloat16):
        bf16 = model(src, mask, tgt, source).decoder_ND
    bf16.float().square().sum().backward()
    assert (bf16 - fp32).abs().max() < 0.15
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_dropout_acts_in_training_alone():
    model = build(dropout=0.5, attention_dropout=0.5)
    src, mask, tgt, source = batch(model)
    one, two = (model(src, mask, tgt, source).decoder_ND for _ in range(2))
    assert torch.equal(one, two)
    model.train()
    one, two = (model(src, mask, tgt, source).decoder_ND for _ in range(2))
    assert (one - two).abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_start_depends_on_the_seed_alone_and_padding_rows_stay_zero(shape):
    torch.manual_seed(5)
    model, again, other = build(seed=3, **shape), build(seed=3, **shape), build(seed=4, **shape)
    weights = model.state_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in weights.items())
    assert not torch.equal(model.head().weight_VD, other.head().weight_VD)
    assert model.head().pad_id == model.config.tgt_vocab_size - 1
    # one matrix of three is drawn as the square that it is: bound sqrt(6 / (16 + 16))
    bound = weights["encoder.0.self_attention.qkv_proj.weight"].abs().max().item()
    assert 0.9 * (6 / 32) ** 0.5 < bound <= (6 / 32) ** 0.5
    src, mask, tgt, source = batch(model)
    optimizer, head = torch.optim.Adam(model.parameters(), lr=0.1), model.head()
    logits = torch.nn.functional.linear(model(src, mask, tgt, source).decoder_ND, head.weight_VD, head.bias_V)
    logits[..., : head.pad_id].logsumexp(-1).sum().backward()
    optimizer.step()
    assert not torch.equal(model.head().weight_VD[:-1], again.head().weight_VD[:-1])
    tables = [model.src_embedding.weight, model.head().weight_VD]
    assert all(not table[-1].any() for table in tables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_heads=3), "d_model is 16 with num_heads 3"),
        (dict(tgt_vocab_size=12), "tie is 'all' with vocabularies of 13 and 12"),
        (dict(norm="middle"), "norm is 'middle'"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(num_encoder_layers=0), "num_encoder_layers is 0"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **changes)


def test_too_long_input_and_unknown_keys_are_refused():
    model = build()
    with pytest.raises(UserError, match="41 tokens is longer than max_positions 40"):
        model(torch.zeros(1, 41).long(), torch.ones(1, 41).bool(), torch.zeros(1, 2).long())
    with pytest.raises(UserError, match="'d_modle'; did you mean 'd_model'"):
        TransformerConfig.from_dict({"d_modle": 3})
    assert TransformerConfig.from_dict(TINY.to_dict()) == TINY


@pytest.mark.parametrize("shape", SHAPES)
def test_t6_packed_positions_equal_the_padded_grid(shape):
    model = build(**shape)
    src, mask, tgt, source = batch(model)
    tgt_mask = torch.arange(tgt.shape[1]) < torch.tensor([20, 3, 0, 11, 7, 1])[:, None]
    weight = model.decoder[0].self_attention.qkv_proj.weight
    grid = model(src, mask, tgt, source).decoder_ND.unflatten(0, tgt.shape)[tgt_mask]
    (expected,) = torch.autograd.grad(grid.square().sum(), weight)
    packed = model(src, mask, tgt, source, tgt_mask).decoder_ND
    (gradient,) = torch.autograd.grad(packed.square().sum(), weight)
    torch.testing.assert_close(packed, grid, atol=2e-6, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-5)


def test_t28_a_block_of_padding_alone_keeps_the_graph():
    model = build()
    src, mask, tgt, source = batch(model)
    hidden = model(src, mask, tgt, source, torch.zeros_like(tgt, dtype=torch.bool)).decoder_ND
    assert hidden.shape == (0, model.config.d_model)
    hidden.sum().backward()
    assert model.encoder[0].feed_forward.fc1.weight.grad.abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_that_are_computed_again_give_the_same_gradient(shape):
    """Dropout on: it drops the same positions both times."""
    gradients = []
    for recompute_layers in (False, True):
        model = build(**shape, dropout=0.3).train()
        model.recompute_layers = recompute_layers
        calls = []
        model.encoder[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        src, mask, tgt, rows = batch(model)
        model.logits(model(src, mask, tgt, rows).decoder_ND).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(calls) == (2 if recompute_layers else 1)
    assert all(torch.equal(kept, again) for kept, again in zip(*gradients, strict=True))
