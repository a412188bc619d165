"""Tiles of large images: where they are, and how their detections become those of the image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Self, TypeAlias

from querybox.arguments import require_number
from querybox.data.windows import Window
from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.inference.merge import merge

Tile: TypeAlias = int | None
"""Side of a tile in pixels; None for no tiles."""

MIN_TILE, MAX_TILE = 32, 8192
"""Sides of tiles in pixels; the largest are decoded in 256 MiB."""
MAX_OVERLAP = 0.9
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
    def of(cls, tile: Tile, overlap: float) -> Self | None:
        """Return the tiling of the arguments of `predict` and `evaluate`; None for no tiles.

        Raises:
            ConfigError: A number is out of its range.
        """
        return None if tile is None else cls(tile, overlap)

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


@dataclass(frozen=True, slots=True)
class View:
    """One of the parts of an image in which objects are detected."""

    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    windows: tuple[Window, ...]
    """All views of the image."""
    index: int
    """Index of this one."""

    @property
    def window(self) -> Window:
        """The part of the image that this view shows."""
        return self.windows[self.index]


def merged(results: Iterable[tuple[View | None, Detections]]) -> Iterator[Detections]:
    """Yield the detections of whole images.

    Args:
        results: The detections of every view, in order, in pixels of the view; None for an image without tiles. An
            image whose last view is missing, because it could not be read, is skipped.
    """
    parts: list[Detections] = []
    for view, detections in results:
        if view is None:
            yield detections
            continue
        if view.index == 0:
            parts.clear()
        parts.append(detections)
        if len(parts) == len(view.windows):
            yield merge(parts, view.windows, view.size)
