"""Batch norms as training leaves them: in a new model they do next to nothing."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomize_batch_norms(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give the batch norms of `model` random statistics and parameters, none of them zero, one or alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.uniform_(0.8, 1.2, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
