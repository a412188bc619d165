"""The heads, which predict classes and boxes from the content of the queries."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ClassHead(nn.Linear):
    """Linear layer to the logits of the classes and, last, the no-object class, for a softmax."""

    no_object: ClassVar[bool] = True
    """Whether the last logit is that of the no-object class; see `Predictions.no_object`."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes + 1)


class SigmoidClassHead(nn.Linear):
    """Linear layer to the logits of the classes, for a sigmoid per class; there is no no-object class.

    The bias is initialised to a probability of 1 % for every class, as focal loss requires (Lin et al. 2017,
    section 3.3).
    """

    no_object: ClassVar[bool] = False
    """See `ClassHead.no_object`."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        nn.init.constant_(self.bias, -math.log(99))


class BoxLayers(nn.Sequential):
    """Multi-layer perceptron with two hidden layers, and four outputs or several for each of the four edges."""

    def __init__(self, width: int, outputs: int = 4, *, activation: type[nn.Module] = nn.ReLU) -> None:
        hidden = (nn.Linear(width, width), activation(), nn.Linear(width, width), activation())
        super().__init__(*hidden, nn.Linear(width, outputs))


class BoxHead(BoxLayers):
    """Predicts boxes."""

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape 4"]:
        """Return boxes, cxcywh in 0-1 of the unpadded image."""
        for layer in self:
            x = layer(x)
        return x.sigmoid()


class DeltaHead(BoxLayers):
    """Predicts the deltas of boxes relative to their references, before the sigmoid; initially zero."""

    def __init__(self, width: int, *, size: float = 0.0, activation: type[nn.Module] = nn.ReLU) -> None:
        """Initialise the deltas to zero, and those of width and height to `size`: -2 is 12 % of the image."""
        super().__init__(width, activation=activation)
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.tensor([0.0, 0.0, size, size]))


class EdgeHead(BoxLayers):
    """Predicts changes of the logits of each edge's distribution (D-FINE); initially zero."""

    def __init__(self, width: int, bins: int, *, activation: type[nn.Module] = nn.ReLU) -> None:
        """Create a head with this number of logits for each of the four edges."""
        super().__init__(width, 4 * bins, activation=activation)
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
