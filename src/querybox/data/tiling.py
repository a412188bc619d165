"""Tiles of large images: where they are, and how large."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, Self, TypeAlias

from querybox.arguments import require_number
from querybox.data.settings import MAX_OVERLAP, MAX_TILE, MIN_TILE, OVERLAP
from querybox.data.transforms import resized_shape
from querybox.data.windows import Window
from querybox.errors import ConfigError
from querybox.structures import Preprocessing

logger = logging.getLogger(__name__)

Tile: TypeAlias = int | Literal["auto"] | None
"""Side of a tile in pixels, or "auto" for that of `suitable_tile`; None for no tiles."""

MAX_TILES = 100_000
"""Maximum number of tiles of an image."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The division of images into square tiles that overlap."""

    tile: int
    """Side of a tile in pixels of the original image."""
    overlap: float
    """Minimum overlap of neighbouring tiles, as a fraction of their side."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: One is out of its range.
        """
        require_number("tiles", "tile", self.tile, MIN_TILE, MAX_TILE, whole=True)
        require_number("tiles", "overlap", self.overlap, 0, MAX_OVERLAP)

    @classmethod
    def of(cls, tile: Tile, overlap: float, preprocessing: Preprocessing) -> Self | None:
        """Return the tiling of the arguments of `predict` and `evaluate`; None for no tiles.

        Args:
            tile: The side, or "auto".
            overlap: See `overlap`.
            preprocessing: The preprocessing of the model.

        Raises:
            ConfigError: A number is out of its range, there is an overlap without tiles, or `tile` is "auto" and the
                model does not state the sizes of objects.
        """
        if tile == "auto":
            tile = suitable_tile(preprocessing)
        if tile is not None:
            return cls(tile, overlap)
        if overlap != OVERLAP:
            raise ConfigError(
                f"overlap={overlap!r} has no effect without tile: set it as well, or omit overlap"
            )
        return None

    def windows(self, size: tuple[int, int]) -> tuple[Window, ...]:
        """Return what is detected in: the whole image, and the tiles unless the image fits one tile.

        All tiles of an image have the same size, and their spacing is even.

        Args:
            size: (height, width) of the image in pixels.

        Raises:
            ConfigError: There are more than `MAX_TILES`.
        """
        height, width = size
        whole = Window(0, 0, width, height)
        if max(size) <= self.tile:
            return (whole,)
        count = (self.steps(height) + 1) * (self.steps(width) + 1)
        if count > MAX_TILES:
            raise ConfigError(
                f"tile={self.tile} and overlap={self.overlap:g} divide an image of {height}x{width} pixels (height x "
                f"width) into {count:,} tiles; expected at most {MAX_TILES:,}: set a larger tile"
            )
        shape = min(self.tile, width), min(self.tile, height)
        corners = product(self.starts(height), self.starts(width))
        return (whole, *(Window(left, top, *shape) for top, left in corners))

    def starts(self, length: int) -> list[int]:
        """Return the first pixel of each tile along an axis of `length` pixels."""
        steps = self.steps(length)
        return [step * (length - self.tile) // max(1, steps) for step in range(steps + 1)]

    def steps(self, length: int) -> int:
        """Return the number of tiles along an axis of `length` pixels after the first."""
        stride = self.tile - math.ceil(self.tile * self.overlap)
        return max(0, math.ceil((length - self.tile) / stride))


def shown_whole(tiles: Sequence[Window]) -> tuple[float, float]:
    """Return the maximum width and height of objects that are whole in at least one tile, wherever they are."""
    limits = []
    for axis in (0, 1):
        starts = sorted({tile[axis] for tile in tiles})
        overlaps = [start + tiles[0][2 + axis] - following for start, following in pairwise(starts)]
        limits.append(float(min(overlaps, default=math.inf)))
    return limits[0], limits[1]


def suitable_tile(preprocessing: Preprocessing) -> int:
    """Return the side of the tiles in which objects appear to a model as large as in its training.

    This holds for objects that have as many pixels as the training objects had: an object of the median side
    `ObjectSides.original` is shown with `ObjectSides.resized` pixels. For images of one size, not wider than high, it
    is their side. The side is limited to `MIN_TILE` and `MAX_TILE`, and logged.

    Raises:
        ConfigError: The model does not state the sizes of objects.
    """
    sides = preprocessing.object_sides
    if sides is None:
        raise ConfigError(
            "tile='auto' needs the sizes of the objects that the model was trained on, which it does not state: files "
            "of earlier versions and of other libraries do not; set a number, such as tile=640, which should be the "
            "side of the training images in pixels, or train the model again"
        )
    shape = resized_shape(
        MAX_TILE, MAX_TILE, preprocessing.short_side, preprocessing.long_side, preprocessing.resizing
    )
    shown = math.sqrt(math.prod(shape))
    tile = min(max(round(shown * sides.original / sides.resized), MIN_TILE), MAX_TILE)
    logger.info(
        "tile=auto: %d pixels; the training objects had a median side of %.4g pixels, and %.4g as the model sees them",
        tile,
        sides.original,
        sides.resized,
    )
    return tile
