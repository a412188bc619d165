"""The heads: what a query says after it has looked at the image."""

from __future__ import annotations

import math

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


class DeltaHead(nn.Sequential):
    """Two hidden layers with ReLU, then how far a box is from where it was thought to be, before the sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )


class BoxHead(DeltaHead):
    """Two hidden layers with ReLU, then a box."""

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape 4"]:
        """Return boxes, cxcywh in 0-1 of the unpadded image."""
        for layer in self:
            x = layer(x)
        return x.sigmoid()
