"""Adam and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdlab.strategies import ranks
from kdlab.strategies.strategy import Strategy


@dataclass(frozen=True)
class Optim:
    """Adam(W), its schedule and the gradient clip.

    Schedule, as a factor of `lr`, step s counted from 1, warm-up w, steps in all n:
        warm-up, s < w:  s / w
        inverse_sqrt:    sqrt(w / s)        (w at least 1)
        linear:          (n - s) / (n - w)
        cosine:          (1 + cos(pi (s - w) / (n - w))) / 2
        constant:        1

    Source: inverse_sqrt as in the deck (4e-4 at 15,000, 1.265e-4 at 150,000 steps).
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float | None
    schedule: Literal["inverse_sqrt", "linear", "cosine", "constant"]
    warmup_steps: int

    def optimizer(self, parameters: Iterable[nn.Parameter], strategy: Strategy) -> Optimizer:
        """Adam with decoupled weight decay (plain Adam where the decay is 0)."""
        settings: dict[str, Any] = {"lr": self.lr, "betas": tuple(self.betas), "eps": self.eps, "fused": True}
        return strategy.optimizer(torch.optim.AdamW, list(parameters), weight_decay=self.weight_decay, **settings)

    def clip(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Scales gradients down to `clip_norm`; their norm before, over all parts where they are sharded."""
        parameters = list(parameters)
        norm = ranks.full(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(parameters, self.clip_norm or float("inf"), norm)
        return norm

    def scheduler(self, optimizer: Optimizer, max_steps: int) -> LambdaLR:
        """Sets the rate of step s before that step."""
        return LambdaLR(optimizer, lambda done: self.factor(done + 1, max_steps))

    def factor(self, step: int, max_steps: int) -> float:
        """The schedule's factor at a step (counted from 1)."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return _SCHEDULES[self.schedule](step, max(1, self.warmup_steps), max_steps)


def _inverse_sqrt(step: int, warmup: int, _max_steps: int) -> float:
    return math.sqrt(warmup / step)


def _linear(step: int, warmup: int, max_steps: int) -> float:
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup))


def _cosine(step: int, warmup: int, max_steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, max_steps - warmup))))


def _constant(_step: int, _warmup: int, _max_steps: int) -> float:
    return 1.0


_SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "inverse_sqrt": _inverse_sqrt,
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
}
