"""Bounding boxes and regions of the shapes that annotation tools draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from querybox.data.findings import Corners
from querybox.data.parsing import Number
from querybox.errors import DataError
from querybox.masks import Region, Rle
from querybox.polygons import Polygons

Point = tuple[Number, Number]
_ELLIPSE = 72
"""Number of vertices of an ellipse."""


def bounding_box(points: Sequence[Point]) -> Corners:
    """Return the smallest box (x0, y0, x1, y1) around at least one point. NaN and infinity are propagated."""
    array = np.asarray(points, dtype=np.float64)
    (x0, y0), (x1, y1) = array.min(axis=0), array.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def polygon_region(parts: Sequence[Sequence[Point]]) -> Polygons | None:
    """Return the region of an object whose parts are polygons; None if one of them has no inside."""
    try:
        return Polygons.of([[side for point in part for side in point] for part in parts])
    except DataError:
        return None


def union(parts: Sequence[Region | None]) -> Region | None:
    """Return the region of an object with these parts, of one image; None if one of them is not known."""
    known = [part for part in parts if part is not None]
    polygons = [part for part in known if isinstance(part, Polygons)]
    masks = [part for part in known if isinstance(part, Rle)]
    if len(known) < len(parts):
        return None
    if not masks:
        return Polygons.of(polygon for part in polygons for polygon in part.to_coco())
    return Rle.union([*masks, *(Rle.of_polygons(part, masks[0].size) for part in polygons)])


def with_holes(exterior: Sequence[Point], holes: Sequence[Sequence[Point]]) -> list[Point]:
    """Return a polygon with holes as one, whose line leads to each hole and back, by the even-odd rule.

    Raises:
        DataError: A hole extends beyond the exterior, whose outside would become the inside there.
    """
    x0, y0, x1, y1 = bounding_box(exterior)
    for hole in filter(None, holes):
        left, top, right, bottom = bounding_box(hole)
        if not (x0 - 1 <= left <= right <= x1 + 1 and y0 - 1 <= top <= bottom <= y1 + 1):
            raise DataError("a hole extends beyond the outline; expected holes inside")
    start = exterior[:1]
    return [*exterior, *(point for hole in holes for point in (*start, *hole, *hole[:1])), *start]


def ellipse(center: Point, radii: Point, degrees: float) -> list[Point]:
    """Return points on an ellipse with radii along x and y, rotated about its center by a finite angle."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE, endpoint=False)
    points = np.stack([center[0] + radii[0] * np.cos(angles), center[1] + radii[1] * np.sin(angles)], 1)
    return rotated([(x, y) for x, y in points.tolist()], center, degrees)


def rectangle(x: float, y: float, width: float, height: float) -> list[Point]:
    """Return the corners of a rectangle, clockwise from the upper left one."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def rotated(points: Sequence[Point], center: Point, degrees: float) -> list[Point]:
    """Return points rotated about `center` by a finite angle, clockwise in an image (y points down)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = center
    return [(x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos) for x, y in points]


def ellipse_box(center: Point, radii: Point, degrees: float) -> Corners:
    """Return the bounding box of an ellipse with radii along x and y, rotated about its center by a finite angle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width = math.hypot(radii[0] * cos, radii[1] * sin)
    half_height = math.hypot(radii[0] * sin, radii[1] * cos)
    return (center[0] - half_width, center[1] - half_height, center[0] + half_width, center[1] + half_height)
