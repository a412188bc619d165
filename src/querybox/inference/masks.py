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
        boxes_xyxy: Boxes in pixels of the original image.
        size: (height, width) of the original image in pixels.
        resized: (height, width) that the image was resized to.
    """
    maps = logits.numpy()
    return tuple(box_mask(*each, size, resized) for each in zip(maps, boxes_xyxy.tolist(), strict=True))


def box_mask(
    logits: Float[np.ndarray, "h w"], box_xyxy: list[float], size: tuple[int, int], resized: tuple[int, int]
) -> Rle:
    """Return the mask of one detection; see `detection_masks`."""
    left, top, right, bottom = box_xyxy
    rows = Places.of(top, bottom, size[0], resized[0], logits.shape[0])
    columns = Places.of(left, right, size[1], resized[1], logits.shape[1])
    part = rows.interpolate(logits[rows.cells, columns.cells]).T  # small: enlarged along one side
    enlarged = columns.interpolate(np.ascontiguousarray(part))  # in the order of pixels in run lengths
    return Rle.of_part((enlarged > 0).T, (rows.start, columns.start), size)


class Places(NamedTuple):
    """Places of pixels between the cells of a map, along one axis."""

    start: int
    """The first pixel."""
    cells: slice
    """The cells around the pixels."""
    below: Int[np.ndarray, " P"]
    """Of these cells, the one before each pixel."""
    weight: Float[np.ndarray, " P"]
    """Distance to that cell, in cells; the weight of the next one."""

    @classmethod
    def of(cls, low: float, high: float, full: int, short: int, cells: int) -> Self:
        """Return the places of the pixels between two edges; beyond the ends of the map, the last cell goes on.

        Args:
            low: Left or upper edge in pixels of the original image.
            high: Right or lower edge.
            full: Side of the original image in pixels.
            short: The same of the resized image.
            cells: Side of the map.
        """
        start, stop = max(0, math.floor(low)), min(full, math.ceil(high))
        pixels = np.arange(start, max(start, stop), dtype=np.float32)
        places = ((pixels + 0.5) * (short / full / MASK_STRIDE) - 0.5).clip(0, cells - 1)
        below = places.astype(np.int64)
        first, last = (int(below[0]), int(below[-1]) + 2) if len(below) else (0, 1)
        return cls(start, slice(first, last), below - first, places - below)

    def interpolate(self, x: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "P w"]:
        """Interpolate the cells linearly along the first axis."""
        before, behind = x[self.below], x[np.minimum(self.below + 1, len(x) - 1)]
        return before + self.weight[:, None] * (behind - before)
