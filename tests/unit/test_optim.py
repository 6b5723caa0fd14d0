"""The learning-rate schedules at steps whose value is known."""

from itertools import pairwise

import pytest
import torch

from kdlab.strategies.single import Single
from kdlab.training.optim import Optim


def optim(schedule: str, **changes) -> Optim:
    settings = {"lr": 4e-4, "betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.0, "clip_norm": 1.0}
    return Optim(**{**settings, "schedule": schedule, "warmup_steps": 15_000, **changes})


def rates(settings: Optim, steps: int, max_steps: int) -> list[float]:
    """The rate in force at every step of a real scheduler."""
    optimizer = settings.optimizer([torch.nn.Parameter(torch.zeros(1))], Single())
    scheduler = settings.scheduler(optimizer, max_steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_decks_inverse_square_root():
    factor = optim("inverse_sqrt").factor
    assert [4e-4 * factor(step, 150_000) for step in (7_500, 15_000, 60_000, 150_000)] == pytest.approx(
        [2e-4, 4e-4, 2e-4, 1.265e-4], rel=1e-3
    )


@pytest.mark.parametrize("schedule, last", [("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)])
def test_warm_up_then_decay_to_the_last_step(schedule, last):
    seen = rates(optim(schedule, lr=1.0, warmup_steps=4), 10, max_steps=10)
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[-1] == pytest.approx(last, abs=1e-9)
    assert all(a >= b for a, b in pairwise(seen[3:]))


def test_no_warm_up_starts_at_the_full_rate():
    assert rates(optim("inverse_sqrt", lr=1.0, warmup_steps=0), 4, 4) == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5])


def test_weight_decay_shrinks_weights_that_get_no_gradient():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optim("constant", lr=0.1, weight_decay=0.5).optimizer([weight], Single())
    weight.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 0.1 * 0.5))
