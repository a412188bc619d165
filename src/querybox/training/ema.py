"""A moving average of the weights: often a better detector than the weights themselves."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """An exponential moving average of a model's weights.

    Early on the average looks back over a tenth of the updates at most, (1 + n) / (10 + n) after n of them, so
    that the random weights of the start do not linger in it.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Move the average towards `model` after update number `step`, 1, 2, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average: list[Tensor] = list(self.model.parameters())
        latest: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(average, latest, 1 - decay)  # one kernel for all of them
        for old, new in zip(self.model.buffers(), model.buffers(), strict=True):
            old.copy_(new)
