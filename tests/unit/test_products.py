"""Rows that are rounded up for oneDNN: what comes out, and its gradients, is what a product without them gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.products import BLOCK, Linear, round_up


def made(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_rows", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("autocast", [False, True])
def test_linear_is_torchs(num_rows, autocast):
    layer = Linear(24, 40)
    plain = nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    given, wanted = (made(1, num_rows, 24).requires_grad_() for _ in range(2))
    pull = made(2, num_rows, 40)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outs = [layer(given), plain(wanted)]
    for out in outs:
        (out.float() * pull).sum().backward()
    assert outs[0].dtype == outs[1].dtype == (torch.bfloat16 if autocast else torch.float32)
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


def test_products_of_a_transformer_have_whole_blocks_of_rows(monkeypatch):
    """What the rounding is for."""
    from kdlab.models.init import random_init
    from kdlab.models.transformer import Transformer, TransformerConfig
    from kdlab.objectives.nll import Nll
    from kdlab.objectives.objective import WeightedTerm
    from kdlab.objectives.reduce import reduce
    from kdlab.types import Side, Targets

    model = Transformer(TransformerConfig(50, 50, 1, 1, 16, 32, 2))
    random_init(model, 1)
    src = torch.arange(40).remainder(48).view(4, 10)
    mask = torch.arange(10) < torch.tensor([[10], [7], [3], [9]])
    seen, linear = set(), F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: seen.add(len(x)) or linear(x, *rest))
    targets = Targets(torch.arange(4), torch.zeros(4, dtype=torch.bool), src, src, mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(src, mask, src, None, mask)
        side = Side(out.decoder_ND, model.head())
        reduce({"nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())}, {"nll": 1.0}, targets, side, None, chunk_size=16)
    assert seen == {BLOCK}
