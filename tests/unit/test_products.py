"""Rows that are rounded up for oneDNN: what comes out, and its gradients, is what a product without them gives."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import WeightedTerm
from kdlab.objectives.reduce import reduce
from kdlab.products import BLOCK, Linear, round_up
from kdlab.types import Side, Targets

aten = torch.ops.aten


def made(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_rows", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.float64)])
def test_linear_is_torchs(num_rows, autocast, dtype):
    layer = Linear(24, 40, dtype=dtype)
    plain = nn.Linear(24, 40, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    given, wanted = (made(1, num_rows, 24).to(dtype).requires_grad_() for _ in range(2))
    pull = made(2, num_rows, 40)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outs = [layer(given), plain(wanted)]
    for out in outs:
        (out.float() * pull).sum().backward()
    assert outs[0].dtype == outs[1].dtype == (torch.bfloat16 if autocast and dtype == torch.float32 else dtype)
    pairs = [(outs[0], outs[1]), (given.grad, wanted.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(layer.parameters(), plain.parameters(), strict=True)]
    for ours, theirs in pairs:
        tolerance = 0.01 * max(theirs.detach().abs().flatten().tolist(), default=0) if autocast else 0  # bf16: 2^-8
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_only_bf16_is_rounded_up_and_by_zeros():
    x = made(3, BLOCK + 1, 8)
    assert torch.equal(round_up(x, torch.float32), x)
    rounded = round_up(x, torch.bfloat16)
    assert rounded.shape == (2 * BLOCK, 8) and rounded.dtype == torch.bfloat16
    assert torch.equal(rounded[: BLOCK + 1], x.bfloat16()) and not rounded[BLOCK + 1 :].any()
    assert torch.equal(round_up(x[:BLOCK], torch.bfloat16), x[:BLOCK].bfloat16())
    assert [len(round_up(x[:n], torch.bfloat16)) for n in (0, 1, 16, 17, 63)] == [0, 16, 16, 32, 64]


class Products(TorchDispatchMode):
    """Notes the sizes of all matrix products, forward and backward."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        matrices = {aten.mm.default: args[:2], aten.addmm.default: args[1:3], aten.linear.default: args[:2]}
        for matrix in matrices.get(function, ()):
            self.sizes |= set(matrix.shape)
        return function(*args, **(kwargs or {}))


FEATURES = {16, 48, 50, 80}  # of the model below, and one token less than its vocabulary: 49


def model():
    found = Transformer(TransformerConfig(50, 50, 1, 1, 16, 80, 2))
    random_init(found, 1)
    return found


def test_products_of_a_step_have_whole_blocks_of_rows():
    """What the rounding is for: 29 real positions, cut into chunks of 17 and 12, are in no product."""
    student = model()
    src = torch.arange(40).remainder(48).view(4, 10)
    mask = torch.arange(10) < torch.tensor([[10], [7], [3], [9]])
    targets = Targets(torch.arange(4), torch.zeros(4, dtype=torch.bool), src, src, mask)
    terms = {"nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())}
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        out = student(src, mask, src, None, mask)
        reduce(terms, {"nll": 1.0}, targets, Side(out.decoder_ND, student.head()), None, chunk_size=17).loss.backward()
    assert products.sizes - FEATURES - {32, 49} == set()  # 29 as 32, 17 as 32, 12 as 16


def test_products_of_a_step_of_decoding_have_whole_blocks_of_rows():
    frozen = model().to(torch.bfloat16).eval()
    hidden = made(5, 21, 16).bfloat16()
    with torch.no_grad(), Products() as products:
        layer = frozen.decoder[0]
        assert len(layer.feed_forward(hidden)) == len(frozen.logits(hidden)) == 21
        layer.cross_attention.q_proj(hidden)
    assert products.sizes - FEATURES == {32}
