"""The heads: what a query says after it has looked at the image."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ClassHead(nn.Linear):
    """One linear layer to the classes and, last, "no object"."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes + 1)


class IndependentClassHead(nn.Linear):
    """One linear layer to the classes, each judged alone: there is no "no object".

    It begins by finding every class unlikely, 1 %, as focal loss needs (Lin et al. 2017, section 3.3).
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        nn.init.constant_(self.bias, -math.log(99))


class BoxLayers(nn.Sequential):
    """Two hidden layers with ReLU, then four numbers."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )


class BoxHead(BoxLayers):
    """Says a box."""

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape 4"]:
        """Return boxes, cxcywh in 0-1 of the unpadded image."""
        for layer in self:
            x = layer(x)
        return x.sigmoid()


class DeltaHead(BoxLayers):
    """Says how far a box is from where it was thought to be, before the sigmoid; at first not at all."""

    def __init__(self, width: int, *, size: float = 0.0) -> None:
        """Build it; `size` is the first delta of width and height: -2 begins with 12 % of the image."""
        super().__init__(width)
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.tensor([0.0, 0.0, size, size]))
