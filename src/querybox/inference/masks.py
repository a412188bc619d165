"""Masks of detections: logits of a map with stride 4, enlarged to the original image and cut to the boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querybox.mask_embeddings import MASK_STRIDE, Masks, Window
from querybox.masks import Rle

PIXELS_AT_ONCE = 1 << 22
"""Pixels of boxes that are encoded together, at least one box; it bounds the memory."""


def detection_masks(
    masks: Masks,
    query: Int[Tensor, "B K"],
    boxes_xyxy: Sequence[Float[Tensor, "_ 4"]],
    sizes: Sequence[tuple[int, int]],
    resized: Sequence[tuple[int, int]],
) -> list[tuple[Rle, ...]]:
    """Return the mask of each detection of each image: the pixels of its box whose interpolated logit is positive.

    Args:
        masks: The masks of all queries.
        query: The query of each detection, in the order of the boxes; those that follow are ignored.
        boxes_xyxy: Boxes that the masks are cut to, up to K for each image, in pixels of the original image.
        sizes: (height, width) of each original image in pixels.
        resized: (height, width) that each image was resized to.
    """
    grids = [Grid.of(*each, masks.shape) for each in zip(sizes, resized, strict=True)]
    cuts = [grid.cuts(boxes.numpy()) for grid, boxes in zip(grids, boxes_xyxy, strict=True)]
    logits = masks.in_windows(query, [[cut.window for cut in each] for each in cuts])
    return [
        tuple(grid.encoded(parts, each, size))
        for grid, size, parts, each in zip(grids, sizes, logits, cuts, strict=True)
    ]


class Axis(NamedTuple):
    """Where the pixels of the original image are between the cells of a map, along one axis."""

    before: Int[np.ndarray, " P"]
    """The cell before each pixel."""
    after: Int[np.ndarray, " P"]
    """The cell after each pixel; beyond the ends of the map, its first or last cell."""
    weights: Float[np.ndarray, "P h"]
    """Weights of linear interpolation, zero except for these two cells."""

    @classmethod
    def of(cls, original: int, resized: int, cells: int) -> Self:
        """Return the places of all pixels.

        Args:
            original: Side of the original image in pixels.
            resized: Side of the resized image in pixels.
            cells: Side of the map in cells.
        """
        pixels = np.arange(original)
        places = ((pixels + 0.5) * (resized / original / MASK_STRIDE) - 0.5).clip(0, cells - 1)
        before = places.astype(np.int64)
        after = np.minimum(before + 1, cells - 1)
        weights = np.zeros((original, cells), dtype=np.float32)
        weights[pixels, after] = places - before
        weights[pixels, before] += 1 - (places - before)
        return cls(before, after, weights)

    def between(
        self, low: Float[np.ndarray, " N"], high: Float[np.ndarray, " N"]
    ) -> Iterator[tuple[slice, slice]]:
        """Yield the pixels between two edges of each box, and the cells around them."""
        side = len(self.before)
        start = np.floor(low).clip(0, side).astype(np.int64)
        stop = np.maximum(start, np.ceil(high).clip(0, side).astype(np.int64))
        first = self.before[start.clip(max=side - 1)]
        last = np.where(start < stop, self.after[stop - 1] + 1, first)
        for pixels_cells in np.stack([start, stop, first, last], 1).tolist():
            yield slice(*pixels_cells[:2]), slice(*pixels_cells[2:])


class Cut(NamedTuple):
    """The part of an image in a box."""

    rows: slice
    """Rows of pixels."""
    columns: slice
    window: Window
    """The cells around them."""


class Grid(NamedTuple):
    """Where the pixels of an image are between the cells of its map."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, size: tuple[int, int], resized: tuple[int, int], shape: tuple[int, int]) -> Self:
        """Return the grid of an image; see `Axis.of`."""
        return cls(*(Axis.of(*each) for each in zip(size, resized, shape, strict=True)))

    def cuts(self, boxes_xyxy: Float[np.ndarray, "N 4"]) -> list[Cut]:
        """Return the part in each box."""
        left, top, right, bottom = boxes_xyxy.T
        return [
            Cut(rows, columns, (vertical, horizontal))
            for (rows, vertical), (columns, horizontal) in zip(
                self.rows.between(top, bottom), self.columns.between(left, right), strict=True
            )
        ]

    def encoded(
        self, logits: Sequence[Float[np.ndarray, "_ _"]], cuts: Sequence[Cut], size: tuple[int, int]
    ) -> Iterator[Rle]:
        """Yield the masks of detections, given the logits of the cells around each."""
        parts: list[Bool[np.ndarray, "_ _"]] = []
        first, pixels = 0, 0
        for index, (each, cut) in enumerate(zip(logits, cuts, strict=True), start=1):
            parts.append(self.inside(each, cut))
            pixels += parts[-1].size
            if pixels > PIXELS_AT_ONCE or index == len(cuts):
                corners = [(one.rows.start, one.columns.start) for one in cuts[first:index]]
                yield from Rle.of_parts(parts, corners, size)
                parts, first, pixels = [], index, 0

    def inside(self, logits: Float[np.ndarray, "h w"], cut: Cut) -> Bool[np.ndarray, "_ _"]:
        """Return the pixels whose interpolated logit is positive."""
        vertical, horizontal = cut.window
        rows, columns = self.rows.weights[cut.rows, vertical], self.columns.weights[cut.columns, horizontal]
        # Not by NumPy; see `MaskEmbeddings.in_windows`.
        down, right = (torch.from_numpy(each.astype(logits.dtype, copy=False)) for each in (rows, columns))
        return ((right @ (down @ torch.from_numpy(logits)).T).numpy() > 0).T  # in the order of run lengths
