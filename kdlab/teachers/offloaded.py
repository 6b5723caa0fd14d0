"""Weights that live in the CPU's memory and visit a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Offloaded:
    """Some frozen parameters that are on the device only between `fetch` and `give_back`."""

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device):
        self._device = device
        self._visits = False
        self._homes = [(parameter, parameter.data.cpu()) for parameter in parameters]
        if device.type == "cuda":
            self._homes = [(parameter, home.pin_memory()) for parameter, home in self._homes]
        self.give_back()

    def fetch(self) -> None:
        """Copies the weights to the device, where they are not there yet."""
        if self._visits:
            return
        self._visits = True
        for parameter, home in self._homes:
            parameter.data = home.to(self._device, non_blocking=True, copy=True)

    def give_back(self) -> None:
        """Forgets the copies."""
        self._visits = False
        for parameter, home in self._homes:
            parameter.data = home

    def around(self, module: nn.Module) -> None:
        """On the device while this module computes."""

        def before(*_: Any) -> None:
            self.fetch()

        def behind(*_: Any) -> None:
            self.give_back()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(behind)
