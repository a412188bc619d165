"""Polygons and the pixels inside them, by the rule of pycocotools.

A polygon is a list of vertices (x, y) in pixels, where pixel (0, 0) extends from 0 to 1. Its pixels are those that the
even-odd rule has inside; the boundary is drawn as by `rleFrPoly` of https://github.com/cocodataset/cocoapi
(common/maskApi.c): vertices are rounded to fifths of a pixel, edges are walked in steps of a fifth, and a column of
pixels changes between inside and outside where an edge crosses its centre.

Legend: V vertices, E edges, T positions at which a mask changes, counted down the columns of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import ndimage

from querybox.errors import DataError

STEPS = 5
"""Steps of a pixel to which vertices are rounded."""
_FAR = 2**30
"""Steps beyond which vertices are clipped, because their products would overflow."""
_NARROW = 2**15 - 1
"""The largest integer of 16 bits."""
_CHUNK = 1 << 20
"""Number of crossings that are computed at once; it bounds the memory."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """The region of an object as the union of polygons, packed, because a dataset may have millions."""

    packed: bytes
    """Integers: the number of polygons, the number of coordinates of each, and the coordinates in fifths of a pixel."""
    wide: bool
    """Whether the integers have 32 bits instead of 16."""

    @classmethod
    def of(cls, polygons: Iterable[Sequence[float] | Float64[np.ndarray, " _"]]) -> Self:
        """Pack polygons, each of which is x1, y1, x2, y2 ... in pixels.

        Raises:
            DataError: There is none, one has less than three vertices or an odd number of values, or a value is NaN or
                infinite.
        """
        rounded = [_in_steps(polygon) for polygon in polygons]
        if not rounded:
            raise DataError("an object has no polygons; expected at least one")
        return cls._pack(rounded)

    @classmethod
    def _pack(cls, polygons: Sequence[Float64[np.ndarray, " _"] | Int64[np.ndarray, " _"]]) -> Self:
        """Pack polygons, each of which is x1, y1, x2, y2 ... in whole fifths of a pixel."""
        head = np.array([len(polygons), *map(len, polygons)])
        numbers = np.concatenate([head, *polygons])
        wide = bool(np.abs(numbers).max() > _NARROW)
        return cls(numbers.astype(np.int32 if wide else np.int16).tobytes(), wide)

    def vertices(self) -> list[Int64[np.ndarray, "_ 2"]]:
        """Return the vertices (x, y) of each polygon, in fifths of a pixel."""
        lengths, coordinates = self._unpack()
        ends = lengths.cumsum(dtype=np.int64)
        return [part.reshape(-1, 2) for part in np.split(coordinates.astype(np.int64), ends[:-1])]

    def _unpack(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of coordinates of each polygon, and all coordinates in fifths of a pixel."""
        numbers = np.frombuffer(self.packed, np.int32 if self.wide else np.int16)
        start = 1 + int(numbers[0])
        return numbers[1:start], numbers[start:]

    def scaled(self, horizontal: float, vertical: float) -> Self:
        """Return the polygons in an image that was resized by these factors."""
        factors = np.array([horizontal, vertical]) / STEPS
        return type(self).of([(vertices * factors).ravel() for vertices in self.vertices()])

    def moved(self, right: int, down: int) -> Self:
        """Return the polygons moved by whole pixels."""
        offset = np.array([right, down]) * STEPS
        return self._pack([(vertices + offset).ravel().clip(-_FAR, _FAR) for vertices in self.vertices()])

    def to_coco(self) -> list[list[float]]:
        """Return x1, y1, x2, y2 ... of each polygon, as in COCO's JSON files; `of` packs the same polygons."""
        # `of` rounds negative ones up.
        inside = (vertices - np.where(vertices < 0, 0.75, 0) for vertices in self.vertices())
        return [np.round(vertices / STEPS, 2).ravel().tolist() for vertices in inside]

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """The smallest box around all vertices, in pixels, up to their rounding to fifths."""
        _, coordinates = self._unpack()
        x, y = coordinates[::2], coordinates[1::2]
        return int(x.min()) / STEPS, int(y.min()) / STEPS, int(x.max()) / STEPS, int(y.max()) / STEPS


def _in_steps(polygon: Sequence[float] | Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    values = np.asarray(polygon, dtype=np.float64)
    largest = float(np.abs(values).max(initial=0))  # NaN if any value is
    if len(values) < 6 or len(values) % 2 or not math.isfinite(largest):
        raise DataError(
            f"a polygon has {len(values)} values; expected at least six finite numbers, x and y of each vertex"
        )
    if STEPS * largest >= _FAR:
        values = values.clip(-_FAR / STEPS, _FAR / STEPS)
    steps: Float64[np.ndarray, " N"] = np.trunc(STEPS * values + 0.5)
    return steps


def fill(vertices: Int64[np.ndarray, "V 2"], size: tuple[int, int]) -> Int64[np.ndarray, " T"]:
    """Return the positions at which the mask of a polygon changes, ascending.

    Args:
        vertices: In fifths of a pixel.
        size: (height, width) of the image in pixels.
    """
    height, width = size
    start, end = vertices, np.roll(vertices, -1, axis=0)
    across = np.abs(end - start)[:, 0] >= np.abs(end - start)[:, 1]  # edges that are walked column by column
    swapped = np.where(across, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = np.where(swapped, end, start), np.where(swapped, start, end)
    # An edge crosses the centre of column k between the steps 5 k + 2 and 5 k + 3.
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.maximum((low + 2) // STEPS, 0)
    stops = np.cumsum(np.maximum(np.minimum((high - 3) // STEPS, width - 1) - first + 1, 0))
    total = int(stops[-1])
    changes = np.zeros(height * width + 1 if total > _CHUNK else 0, dtype=bool)
    positions = np.zeros(0, dtype=np.int64)
    for begin in range(0, total, _CHUNK):
        crossing = np.arange(begin, min(begin + _CHUNK, total))
        edge = np.searchsorted(stops, crossing, side="right")
        column = first[edge] + crossing - np.concatenate([[0], stops])[edge]
        rows = _rows(start[edge], end[edge], across[edge], column).clip(0, height)
        positions = _odd(column * height + rows)
        if len(changes):
            changes[positions] ^= True
    return np.flatnonzero(changes) if len(changes) else positions


def _rows(
    start: Int64[np.ndarray, "E 2"],
    end: Int64[np.ndarray, "E 2"],
    across: Bool[np.ndarray, " E"],
    column: Int64[np.ndarray, " E"],
) -> Int64[np.ndarray, " E"]:
    """Return the first row below the point at which each edge crosses the centre of a column.

    Args:
        start: The end of each edge from which it is walked.
        end: The other end.
        across: Whether its width is at least its height.
        column: The columns, in pixels.
    """
    x, y = start.T
    width, height = (end - start).T
    target = STEPS * column + 3
    # Walked column by column, the row is rounded; the smaller one of both sides of the crossing counts.
    slope = height / np.where(across, width, 1)
    beside = target - x
    rows_across = np.minimum(np.trunc(y + slope * (beside - 1) + 0.5), np.trunc(y + slope * beside + 0.5))
    # Walked row by row, the crossing is at the first row whose rounded column is on the other side of the centre.
    slope = width / np.where(across, 1, height)
    guess = np.floor((target - 0.5 - x) / np.where(slope == 0, 1, slope)) - 1
    row = guess[:, None] + np.arange(3)
    before = (x[:, None] + slope[:, None] * row + 0.5 < target[:, None]) == (slope > 0)[:, None]
    rows_along = y + guess + before.sum(1) - 1
    rows: Int64[np.ndarray, " E"] = np.where(across, rows_across, rows_along).astype(np.int64)
    return (rows + 2) // STEPS


def _odd(positions: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " T"]:
    """Return the positions that occur an odd number of times, ascending."""
    values, counts = np.unique(positions, return_counts=True)
    return values[counts % 2 == 1]


def trace(mask: Bool[np.ndarray, "H W"]) -> list[Int64[np.ndarray, "_ 2"]]:
    """Return the outline of every part of a mask, as vertices (x, y) in pixels; `fill` makes the same mask of them.

    A part is a set of pixels that are connected by their sides. Its holes are joined to its outline by a line that is
    drawn there and back.
    """
    parts, _ = ndimage.label(mask)
    outlines = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        loops = _loops(np.pad(parts[rows, columns] == number, 1))
        ends = [loop[:1] for loop in loops]
        joined = [points for loop, end in zip(loops, ends, strict=True) for points in (loop, end)][:-1]
        back = ends[-1:] + ends[-2:0:-1] if len(loops) > 1 else []
        corner = np.array([columns.start, rows.start])
        outlines.append(np.concatenate([*joined, *back]) + corner)
    return outlines


def _loops(mask: Bool[np.ndarray, "H W"]) -> list[Int64[np.ndarray, "_ 2"]]:
    """Return the closed lines between the inside and the outside of a mask with an empty border; the outer one first.

    Every line turns at each of its vertices, so that the vertices of a row of the grid, from left to right, are the
    ends of horizontal edges, and those of a column are the ends of vertical edges.
    """
    a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    turns = (a ^ b ^ c ^ d) + 2 * ((a == d) & (b == c) & (a != b))  # two where pixels touch at a corner
    y, x = (np.repeat(side, turns[turns > 0]) for side in np.nonzero(turns))
    by_column = np.lexsort((y, x))
    vertical = np.empty_like(by_column)
    vertical[by_column[::2]], vertical[by_column[1::2]] = by_column[1::2], by_column[::2]
    below = vertical.tolist()
    loops, visited = [], [False] * len(below)
    for first in range(len(below)):
        loop, vertex = [], first
        while not visited[vertex]:
            other = below[vertex]
            visited[vertex] = visited[other] = True
            loop += [vertex, other]
            vertex = other ^ 1
        if loop:
            loops.append(np.stack([x[loop], y[loop]], 1))
    return loops
