"""The content of a Pascal VOC XML file."""

from __future__ import annotations

import codecs
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Float64

from querybox.data.findings import FindingCollector
from querybox.data.parsing import parse_xml, stated_size
from querybox.data.shapes import Point, bounding_box, polygon_region
from querybox.data.text import decode, read_bounded
from querybox.errors import DataError
from querybox.polygons import Polygons

_ENCODING = re.compile(rb"""\s*<\?xml[^>]*encoding=["']([\w.-]+)["']""")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Annotation(NamedTuple):
    """The content of one file."""

    path: str
    """Path of the file, as a string because there may be 100,000 files."""
    file_name: str
    """The image's name in `<filename>`, possibly empty."""
    size: tuple[int, int] | None
    """(height, width) of the image, if they are stated."""
    names: tuple[str, ...]
    """The class of each object."""
    boxes_xyxy: Float64[np.ndarray, "G 4"]
    """Corners in pixels."""
    difficult: tuple[int, ...] = ()
    """The objects that are marked `difficult`, numbered from 1."""
    regions: tuple[Polygons | None, ...] = ()
    """The polygon of each object; None for those without one."""

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.path)


def parse_voc(file: Path, findings: FindingCollector) -> Annotation | None:
    """Parse an XML file; add a finding for what cannot be parsed.

    Returns:
        The content, without objects if they are malformed; None if this is another kind of XML.
    """
    try:
        root = parse_xml(_read(file, findings), str(file))
        if root.tag != "annotation":
            findings.add("unread_file", f"{file}: its root is <{root.tag}>; expected <annotation>")
            return None
        objects = list(enumerate(root.findall("object"), start=1))
        return Annotation(
            path=str(file),
            file_name=(root.findtext("filename") or "").strip(),
            size=stated_size(root.findtext("size/height"), root.findtext("size/width")),
            names=tuple(sys.intern(_name(file, number, item)) for number, item in objects),
            boxes_xyxy=_array([_box(file, number, item, findings) for number, item in objects]),
            difficult=tuple(
                n
                for n, item in objects
                if (item.findtext("difficult") or "").strip().lower() in {"1", "true"}
            ),
            regions=tuple(_region(file, number, item, findings) for number, item in objects),
        )
    except DataError as error:
        problem = str(error)
    except (OSError, ValueError, LookupError) as error:  # unreadable; unknown encodings
        problem = f"{file}: cannot be read as XML: {error}"
    findings.add("malformed", problem)
    return Annotation(path=str(file), file_name="", size=None, names=(), boxes_xyxy=_array([]))


def _array(boxes: list[list[float]]) -> Float64[np.ndarray, "G 4"]:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _read(file: Path, findings: FindingCollector) -> bytes | str:
    """Return the content; as a string if it is in an encoding that the XML parser does not know, or in a wrong one."""
    content = read_bounded(file)
    declared = _ENCODING.match(content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding in {"utf-8", "utf8"}:
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content if content.isascii() or is_utf16 else decode(content, file, findings)
    return content.decode(encoding)


def _name(file: Path, number: int, item: Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}: object {number} has no name; expected <name>class</name>")
    return name


def _box(file: Path, number: int, item: Element, findings: FindingCollector) -> list[float]:
    """Return the box of an object, or the bounding box of its polygon or rotated box if it has none."""
    polygon, rotated = item.find("polygon"), item.find("robndbox")
    texts = [item.findtext(f"bndbox/{side}") for side in _SIDES]
    try:
        if texts != [None] * 4 or (polygon is None and rotated is None):
            return [float(text or "") for text in texts]
        findings.add("boxed_shape", f"{file}, object {number}")
        if rotated is not None:
            return _bounds_of_rotated(
                *(float(rotated.findtext(key) or "") for key in ("cx", "cy", "w", "h", "angle"))
            )
        assert polygon is not None
        return list(bounding_box(_points(polygon)))
    except ValueError:
        raise DataError(
            f"{file}: object {number} has the box {texts}; expected numbers in xmin, ymin, xmax and ymax of <bndbox>"
        ) from None


def _region(file: Path, number: int, item: Element, findings: FindingCollector) -> Polygons | None:
    """Return the polygon of an object, as Roboflow writes it; None without one."""
    polygon = item.find("polygon")
    try:
        return None if polygon is None else polygon_region([_points(polygon)])
    except ValueError:
        findings.add(
            "malformed_mask",
            f"{file}, object {number}: expected as many numbers x1, x2, ... as y1, y2, ... in <polygon>",
        )
        return None


def _points(polygon: Element) -> list[Point]:
    """Return the corners of a polygon.

    Raises:
        ValueError: They are not pairs of numbers, or there are none.
    """
    x, y = ([float(point.text or "") for point in polygon if point.tag[:1] == axis] for axis in "xy")
    points = list(zip(x, y, strict=True))
    if not points:
        raise ValueError
    return points


def _bounds_of_rotated(cx: float, cy: float, width: float, height: float, angle: float) -> list[float]:
    """Return the bounding box of a box that is rotated by `angle` in radians, as roLabelImg writes it."""
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return [cx - half_width, cy - half_height, cx + half_width, cy + half_height]
