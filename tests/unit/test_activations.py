"""What a forward keeps for its backward: the formula against what autograd really saves, on a CPU."""

from itertools import product

import pytest
import torch

from kdlab.models.activations import Microbatch, activations, layer_outputs
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.types import ModelOutput

SIZES = {"src_vocab_size": 50, "tgt_vocab_size": 50, "d_model": 64, "d_ff": 160, "num_heads": 4}
KINDS = [
    {
        **SIZES,
        "num_encoder_layers": e,
        "num_decoder_layers": d,
        "activation": a,
        "norm": n,
        "dropout": p,
        "attention_dropout": q,
    }
    for (e, d), a, n, p, q in product(
        ((2, 3),), ("relu", "gelu", "silu", "swiglu"), ("post", "pre"), (0.0, 0.1), (0.0, 0.1)
    )
]


def saved(architecture, src_lens, tgt_lens, *, bf16=False, recompute=False):
    """Bytes that autograd saves in a forward, parameters and copies apart; then those that outputs hold beside."""
    model = Transformer(TransformerConfig(**architecture))
    random_init(model, 1)
    model.train()
    model.recompute_layers = recompute
    theirs = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    shapes = {s for p in model.parameters() for s in (tuple(p.shape), tuple(p.shape)[::-1])}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in theirs and tuple(tensor.shape) not in shapes:
            found[storage._cdata] = storage  # it lives, so nobody else gets its address
        return tensor

    src, tgt = (torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in lens], True) for lens in (src_lens, tgt_lens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16, bf16):
        out = model(src.long(), src.bool(), tgt.long(), torch.arange(len(src)), tgt.bool())
    numbers = sum(storage.nbytes() for storage in found.values())
    outputs = {x.untyped_storage()._cdata: x for x in (*out.encoder_layers, *out.decoder_layers, out.decoder_ND)}
    return numbers, sum(x.untyped_storage().nbytes() for at, x in outputs.items() if at not in found)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_formula_is_exact_where_nothing_is_padded(bf16):
    batch = Microbatch(num_sources=8, src_len=32, num_rows=8, tgt_len=48)  # whole blocks of rows (products.py)
    for architecture in KINDS:
        kept = activations(architecture, batch, bf16=bf16, on_gpu=False)
        assert (kept.total() - kept.outputs, kept.outputs) == saved(architecture, [32] * 8, [48] * 8, bf16=bf16), (
            architecture
        )


@pytest.mark.parametrize("bf16", [False, True])
def test_with_padding_it_is_at_most_a_tenth_too_much(bf16):
    src, tgt = [10] * 16 + [8] * 12, [15] * 16 + [12] * 12  # 0.9 real, as batching leaves it; whole blocks of rows
    for architecture in KINDS[::5]:
        kept = activations(architecture, Microbatch(28, 10, 28, 15), bf16=bf16, on_gpu=False)
        assert 1.0 <= kept.total() / sum(saved(architecture, src, tgt, bf16=bf16)) <= 1.1, architecture


@pytest.mark.parametrize("bf16", [False, True])
def test_recomputed_layers_keep_their_inputs_alone(bf16):
    src, tgt, width = [7] * 3, [11] * 3, SIZES["d_model"]
    for architecture in KINDS[::3]:
        kept = activations(architecture, Microbatch(3, 7, 3, 11), bf16=bf16, on_gpu=False)
        inputs = (2 * 21 + 3 * 33 + 21) * width * 4  # of 2 + 3 layers; the decoder's have the encoder's output beside
        one = max(kept.encoder_layer, kept.decoder_layer)
        assert kept.total(checkpointing=True) == inputs + one + kept.outside, architecture
        beside, _ = saved(architecture, src, tgt, bf16=bf16, recompute=True)
        assert beside <= inputs + kept.outside and kept.total(checkpointing=True) < kept.total(), architecture


def test_twice_the_length_is_twice_the_linear_part_and_four_times_the_scores():
    def per_layer(length):
        return activations(KINDS[0], Microbatch(1, length, 1, length), bf16=False, on_gpu=False).encoder_layer

    scores = 4 * SIZES["num_heads"]  # bytes for each pair of positions
    linear = per_layer(8) - scores * 8**2
    assert per_layer(16) == 2 * linear + scores * 16**2
    on_gpu = [activations(KINDS[0], Microbatch(1, n, 1, n), bf16=True, on_gpu=True).total() for n in (100, 200)]
    assert on_gpu[1] == 2 * on_gpu[0]  # the fused kernel keeps no scores


def test_outputs_of_all_layers_are_what_a_frozen_model_returns():
    architecture = KINDS[0] | {"norm": "pre"}
    model = Transformer(TransformerConfig(**architecture)).eval()
    with torch.no_grad():
        out: ModelOutput = model(torch.ones(3, 7).long(), torch.ones(3, 7).bool(), torch.ones(3, 11).long())
    held = {x.untyped_storage()._cdata: x for x in (*out.encoder_layers, *out.decoder_layers, out.decoder_ND)}
    assert sum(x.untyped_storage().nbytes() for x in held.values()) == layer_outputs(
        architecture, Microbatch(3, 7, 3, 11)
    )
