from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def trained() -> Callable[[nn.Module], None]:
    """Gives a module weights and batch norm statistics as training leaves them: none of them zero, one or alike."""

    @torch.no_grad()
    def change(module: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.2, 0.2, generator=generator)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
                part.weight.uniform_(0.5, 1.2, generator=generator)
                part.bias.uniform_(-0.2, 0.2, generator=generator)
            elif isinstance(part, nn.LayerNorm | nn.Linear) and part.bias is not None:
                part.bias.uniform_(-0.2, 0.2, generator=generator)

    return change
