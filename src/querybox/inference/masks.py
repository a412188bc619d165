"""Masks of detections: logits of a map with stride 4, enlarged to the original image and cut to the boxes."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from querybox.mask_embeddings import MASK_STRIDE
from querybox.masks import Rle


def detection_masks(
    logits: Float[Tensor, "N h w"],
    boxes_xyxy: Float[Tensor, "N 4"],
    size: tuple[int, int],
    resized: tuple[int, int],
) -> tuple[Rle, ...]:
    """Return the mask of each detection: the pixels of its box whose interpolated logit is positive.

    Args:
        logits: Mask logits of each detection, on the CPU.
        boxes_xyxy: Boxes that the masks are cut to, in pixels of the original image.
        size: (height, width) of the original image in pixels.
        resized: (height, width) that the image was resized to.
    """
    height, width = logits.shape[1:]
    rows = Axis.of(size[0], resized[0], height)
    columns = Axis.of(size[1], resized[1], width)
    return tuple(
        box_mask(each, box, rows, columns, size)
        for each, box in zip(logits.numpy(), boxes_xyxy.tolist(), strict=True)
    )


class Axis(NamedTuple):
    """Where the pixels of the original image are between the cells of a map, along one axis."""

    before: Int[np.ndarray, " P"]
    """The cell before each pixel."""
    behind: Int[np.ndarray, " P"]
    """The next one; beyond the ends of the map, its first and its last cell go on."""
    weight: Float[np.ndarray, "P 1"]
    """That of the next one, 0-1."""

    @classmethod
    def of(cls, full: int, short: int, cells: int) -> Self:
        """Return the places of all pixels.

        Args:
            full: Side of the original image in pixels.
            short: The same of the resized image.
            cells: Side of the map.
        """
        pixels = np.arange(full, dtype=np.float32)
        places = ((pixels + 0.5) * (short / full / MASK_STRIDE) - 0.5).clip(0, cells - 1)
        before = places.astype(np.int64)
        return cls(before, np.minimum(before + 1, cells - 1), (places - before)[:, None])

    def pixels(self, low: float, high: float) -> slice:
        """Return the pixels between two edges of a box."""
        start, stop = max(0, math.floor(low)), min(len(self.before), math.ceil(high))
        return slice(start, max(start, stop))

    def cells(self, pixels: slice) -> slice:
        """Return the cells around some pixels."""
        behind = self.behind[pixels]
        return slice(int(self.before[pixels.start]), int(behind[-1]) + 1) if len(behind) else slice(0, 0)

    def interpolate(
        self, x: Float[np.ndarray, "h w"], cells: slice, pixels: slice
    ) -> Float[np.ndarray, "P w"]:
        """Interpolate a map, of which some cells are given, linearly along its first axis at some pixels."""
        before = x[self.before[pixels] - cells.start]
        return before + self.weight[pixels] * (x[self.behind[pixels] - cells.start] - before)


def box_mask(
    logits: Float[np.ndarray, "h w"], box_xyxy: list[float], rows: Axis, columns: Axis, size: tuple[int, int]
) -> Rle:
    """Return the mask of one detection; see `detection_masks`."""
    left, top, right, bottom = box_xyxy
    y, x = rows.pixels(top, bottom), columns.pixels(left, right)
    y_cells, x_cells = rows.cells(y), columns.cells(x)
    part = rows.interpolate(logits[y_cells, x_cells], y_cells, y).T  # small: enlarged along one side
    enlarged = columns.interpolate(np.ascontiguousarray(part), x_cells, x)  # in the order of run lengths
    return Rle.of_part((enlarged > 0).T, (y.start, x.start), size)
