"""Exponential moving average (EMA) of the weights, which often makes a better detector than the weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from querybox.checkpoints import native

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """An exponential moving average of a model's weights.

    The decay increases with the number of updates, so that the initial random weights do not dominate the average at
    the beginning.
    """

    def __init__(self, model: M, decay: float, warmup: int | None = None) -> None:
        """Create the average, equal to `model`.

        Args:
            model: The model.
            decay: The decay after many updates.
            warmup: Time constant in updates: the decay after n updates is ``decay * (1 - exp(-n / warmup))``. None for
                the smaller one of ``decay`` and ``(1 + n) / (10 + n)``.
        """
        self.decay = decay
        self.warmup = warmup
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Update the average with the parameters and statistics of `model` after update number `step`, from 1."""
        decay = self.decay_after(step)
        average: list[Tensor] = list(self.model.parameters())
        latest: list[Tensor] = list(model.parameters())
        for old, new in zip(self.model.buffers(), model.buffers(), strict=True):
            if old.is_floating_point():  # statistics of batch norms, which belong to the weights
                average.append(old)
                latest.append(new)
            else:
                old.copy_(new)
        torch._foreach_lerp_(average, latest, 1 - decay)  # one kernel for all of them

    def restart(self, model: nn.Module, path: Path) -> None:
        """Set both the average and `model` to the weights in a file of `querybox.checkpoints.blueprint.save`.

        Raises:
            CheckpointError: The file is missing or corrupt.
        """
        tensors, _ = native.read(path)
        self.model.load_state_dict(tensors)
        model.load_state_dict(tensors)

    def decay_after(self, step: int) -> float:
        """Return the decay in update number `step`, from 1."""
        if self.warmup is None:
            return min(self.decay, (1 + step) / (10 + step))
        return self.decay * (1 - math.exp(-step / self.warmup))
