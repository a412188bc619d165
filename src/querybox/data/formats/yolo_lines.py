"""Lines of YOLO labels, one for each object: `class cx cy width height` in 0-1 of the image.

A line may also have the name of the class, if that is one word, commas instead of spaces, or the corners of a polygon
or of a rotated box, `class x1 y1 x2 y2 ...`, which is its mask, and whose bounding box is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from querybox.data.findings import Corners, FindingCollector
from querybox.data.shapes import polygon_region
from querybox.masks import Region
from querybox.text import listed

Names = Mapping[int, str]
"""Class names by class number."""

_MARGIN = 0.1
"""How far values may be outside 0-1. Annotation tools let objects extend beyond the image; pixels are much larger."""


class LabelledObject(NamedTuple):
    """The object in a line."""

    line: int
    """The number of the line, from 1."""
    label: int
    """Index of the class among the sorted class numbers."""
    box: Sequence[float]
    """cx, cy, width, height in 0-1 of the image."""
    has_more: bool
    """Whether the line has corners or keypoints."""
    corners: Sequence[float]
    """x1, y1, x2, y2 ... of a polygon in 0-1 of the image; nothing for a box."""

    @property
    def box_xyxy(self) -> Corners:
        """Corners of the box in 0-1 of the image."""
        cx, cy, width, height = self.box
        return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2

    def region(self, width: int, height: int) -> Region | None:
        """Return the mask in an image of this size in pixels; None for a box."""
        if not self.corners:
            return None
        points = zip(self.corners[::2], self.corners[1::2], strict=True)
        return polygon_region([[(x * width, y * height) for x, y in points]])


class LineError(Exception):
    """A line is invalid.

    Attributes:
        kind: The kind of finding.
    """

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


class LabelParser:
    """Parses the lines of a dataset.

    Attributes:
        labels: The label, 0 ... C-1, of each class number.
    """

    def __init__(self, names: Names, *, has_keypoints: bool = False) -> None:
        """Create a parser.

        Args:
            names: Class names by class number.
            has_keypoints: Whether lines have keypoints after the box, which are ignored.
        """
        self.labels = {number: label for label, number in enumerate(sorted(names))}
        self.numbers = {name: number for number, name in names.items() if not name.isdecimal()}
        self.has_keypoints = has_keypoints

    def objects(
        self, where: str, lines: Sequence[str], findings: FindingCollector, *, image_id: int | None = None
    ) -> list[LabelledObject]:
        """Return the objects in the lines of a file; add findings for lines that are invalid.

        Args:
            where: The file, for messages.
            lines: Its lines, stripped; empty ones are skipped.
            findings: Collects problems.
            image_id: Id of the image; None if it has none yet.
        """
        objects = []
        for number, line in enumerate(lines, start=1):
            try:
                if line:
                    objects.append(self.object(number, line))
            except LineError as error:
                findings.add(error.kind, f"{where}, line {number}: {error}", image_id=image_id)
        if count := sum(one.has_more for one in objects):
            kind = "keypoints" if self.has_keypoints else "boxed_shape"
            findings.add(kind, f"{where}: {count}", image_id=image_id, count=count)
        return objects

    def object(self, number: int, line: str) -> LabelledObject:
        """Return the object in a line with this number.

        Raises:
            LineError: It is invalid.
        """
        name, *fields = line.replace(",", " ").split()
        try:
            exact, values = float(self.numbers.get(name, name)), list(map(float, fields))
        except ValueError:
            raise LineError(f"got {line[:80]!r}; expected numbers: class cx cy width height") from None
        if not exact.is_integer():  # some tools write 0.0
            raise LineError(f"class {name}; expected a whole number")
        category = int(exact)
        has_more = len(values) > 4
        if has_more and self.has_keypoints:
            values = values[:4]
        if len(values) == 5:
            raise LineError("has 6 values; expected 5: class cx cy width height, without a confidence")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise LineError(
                f"has {1 + len(fields)} values; expected 5: class cx cy width height (or a class and corners of a "
                "polygon)"
            )
        if any(math.isfinite(value) and not -_MARGIN <= value <= 1 + _MARGIN for value in values):
            shown = listed([f"{value:g}" for value in values], 8)
            raise LineError(f"{shown} is outside 0-1; divide pixels by the image's width and height")
        if category not in self.labels:
            what = f"class {category}; the dataset defines {listed(list(self.labels))}"
            if category == len(self.labels) and 0 in self.labels:
                what += ", the first of which is 0"
            raise LineError(what, "unknown_category")
        label = self.labels[category]
        if len(values) == 4:
            return LabelledObject(number, label, values, has_more, [])
        return LabelledObject(number, label, _bounds(values), has_more, values)


def _bounds(corners: Sequence[float]) -> list[float]:
    """Return the bounding box, cx cy width height, of x1 y1 x2 y2 ..."""
    if not all(map(math.isfinite, corners)):
        return [math.nan] * 4
    (left, right), (top, bottom) = ((min(side), max(side)) for side in (corners[::2], corners[1::2]))
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
