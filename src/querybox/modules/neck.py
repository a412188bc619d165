"""The neck, which projects backbone features to the width of the transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

CONV_1X1 = partial(nn.Conv2d, kernel_size=1)


class InputProjection(nn.Module):
    """A 1x1 convolution per feature map, possibly with a norm."""

    def __init__(
        self,
        channels: list[int],
        width: int,
        projection: Callable[[int, int], nn.Module] = CONV_1X1,
    ) -> None:
        """Create the convolutions.

        Args:
            channels: Channels of each map.
            width: Channels of the projected maps, D.
            projection: Returns the convolution for these numbers of channels.
        """
        super().__init__()
        self.projections = nn.ModuleList(projection(count, width) for count in channels)

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Project each map, keeping its size."""
        return [project(feature) for project, feature in zip(self.projections, features, strict=True)]


class PyramidProjection(nn.Module):
    """A 1x1 convolution per feature map, and coarser maps by 3x3 convolutions of stride 2, each with a group norm."""

    def __init__(self, channels: list[int], width: int, levels: int) -> None:
        super().__init__()
        extra = [channels[-1], *[width] * levels][: levels - len(channels)]
        convolutions = [nn.Conv2d(count, width, kernel_size=1) for count in channels]
        convolutions += [nn.Conv2d(count, width, kernel_size=3, stride=2, padding=1) for count in extra]
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.projections = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(32, width)) for convolution in convolutions
        )

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Return maps with D channels, fine to coarse."""
        projections = list(self.projections)
        maps = [project(feature) for project, feature in zip(projections, features, strict=False)]
        coarsest = features[-1]
        for project in projections[len(features) :]:
            coarsest = project(coarsest)
            maps.append(coarsest)
        return maps
