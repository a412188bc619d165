"""The neck brings backbone features to the transformer's width."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class InputProjection(nn.Module):
    """One 1x1 convolution a level."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(count, width, kernel_size=1) for count in channels)

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Project each map; its size stays."""
        return [project(feature) for project, feature in zip(self.projections, features, strict=True)]
