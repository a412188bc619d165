from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from batch_norms import randomize_batch_norms
from torch import nn


@pytest.fixture
def trained() -> Callable[[nn.Module], None]:
    """Gives a module weights and batch norm statistics as training leaves them: none of them zero, one or alike."""

    @torch.no_grad()
    def change(module: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        randomize_batch_norms(module, generator)
        for part in module.modules():
            if isinstance(part, nn.LayerNorm | nn.Linear) and part.bias is not None:
                part.bias.uniform_(-0.2, 0.2, generator=generator)

    return change
