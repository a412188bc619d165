"""CVAT XML 1.1, for images and for video: https://docs.cvat.ai/docs/manual/advanced/xml_format/.

A file has images with shapes, or tracks with shapes in the frames of a video, whose images are named `frame_000000` and
so on. Every shape with an extent becomes its bounding box; polygons, ellipses and masks are masks, too. Subsets of a
project are splits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from querybox.data.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    alphabetical,
    annotated_splits,
)
from querybox.data.findings import Corners, FindingCollector
from querybox.data.image import MAX_PIXELS
from querybox.data.layout import locator_for, split_files
from querybox.data.parsing import read_xml, stated_size, xml_element, xml_root
from querybox.data.shapes import Point, bounding_box, ellipse, ellipse_box, polygon_region, rectangle, rotated
from querybox.data.splits import Format, Reader
from querybox.masks import Region, Rle
from querybox.structures import Category

_WITHOUT_EXTENT = frozenset({"points", "skeleton", "tag"})
_CUBOID = [f"{corner}{face}" for corner in ("tl", "bl", "tr", "br") for face in (1, 2)]
_DEFAULT_SUBSET = "default"


class _LabelledShape(NamedTuple):
    """A shape of an image, and its class."""

    where: str
    label: str
    shape: Element


def _splits(path: Path) -> dict[str, Reader]:
    files = split_files(path, ".xml", lambda file: xml_root(file) == "annotations")
    metas = {file: _meta(file) for file in files.values()}
    splits = {}
    for name, file in files.items():
        subsets = list(dict.fromkeys(_subset(item.text) for item in metas[file].iter("subset")))
        for subset in subsets if len(subsets) > 1 else [None]:
            key = name if subset is None else subset if len(files) == 1 else f"{name}/{subset}"
            parse = partial(_parse, file, subset, subsets)
            locator = locator_for(path, file)
            splits[key] = AnnotatedSplit(file, locator, parse, locator.root == path)
    return annotated_splits(splits, partial(_categories, [*metas.values()]))


def _meta(file: Path) -> Element:
    found = xml_element(file, "meta", before=frozenset({"image", "track"}))
    return Element("meta") if found is None else found


def _subset(name: str | None) -> str:
    return (name or "").strip() or _DEFAULT_SUBSET


def _categories(metas: Sequence[Element], names: Collection[str]) -> tuple[Category, ...]:
    """Return the classes that the files define for shapes with an extent, and those that occur."""
    labels = [label for meta in metas for label in meta.iter("label")]
    defined = {
        (label.findtext("name") or "").strip()
        for label in labels
        if label.findtext("type") not in _WITHOUT_EXTENT
    }
    return alphabetical({*names, *defined} - {""})


def _parse(
    file: Path, subset: str | None, subsets: Sequence[str], findings: FindingCollector
) -> list[AnnotatedImage]:
    root = read_xml(file)
    images = []
    for element in root.iter("image"):
        name, own = (element.get("name") or "").strip(), _subset(element.get("subset"))
        where = f"{file}, image {name[:200]!r}"
        if not name:
            findings.add("malformed", f"{where}: has no name; expected the name of its file")
        elif subset is not None and own not in subsets:
            findings.add("malformed", f"{where}: is of subset {own!r}; <meta> lists {', '.join(subsets)}")
        elif subset in (None, own):
            shapes = [
                _LabelledShape(f"{where}, {shape.tag} {number}", (shape.get("label") or "").strip(), shape)
                for number, shape in enumerate(element, start=1)
            ]
            size = stated_size(element.get("height"), element.get("width"))
            objects = list(_objects(shapes, size, findings))
            images.append(AnnotatedImage(name=name, where=where, size=size, objects=objects))
    return images + _frames(file, root, findings)


def _frames(file: Path, root: Element, findings: FindingCollector) -> list[AnnotatedImage]:
    """Return the frames of a video that have objects."""
    size = stated_size(root.findtext(".//original_size/height"), root.findtext(".//original_size/width"))
    frames: dict[int, list[_LabelledShape]] = {}
    for number, track in enumerate(root.iter("track"), start=1):
        for shape in track:
            where = f"{file}, track {number}, frame {shape.get('frame')}, {shape.tag}"
            try:
                frame = int(shape.get("frame") or "")
            except ValueError:
                findings.add("malformed", f"{where}: expected the number of a frame")
                continue
            if shape.get("outside") != "1":  # otherwise the object has left the image
                label = (track.get("label") or "").strip()
                frames.setdefault(frame, []).append(_LabelledShape(where, label, shape))
    return [
        AnnotatedImage(
            name=f"frame_{frame:06d}",
            where=f"{file}, frame {frame}",
            size=size,
            objects=list(_objects(frames[frame], size, findings)),
        )
        for frame in sorted(frames)
    ]


def _objects(
    shapes: Sequence[_LabelledShape], size: tuple[int, int] | None, findings: FindingCollector
) -> Iterator[AnnotatedObject]:
    for where, label, shape in shapes:
        try:
            box = _box(shape)
        except ValueError:
            findings.add("malformed", f"{where}: expected numbers, got {dict(shape.attrib)}"[:500])
            continue
        if box is None:
            findings.add("unsupported_shape", where)
        elif not label:
            findings.add("malformed", f"{where}: has no label; expected the name of its class")
        else:
            if shape.tag != "box" or _rotation(shape):
                findings.add("boxed_shape", where)
            yield AnnotatedObject(where, label, box, mask=_mask(where, shape, size, findings))


def _mask(
    where: str, shape: Element, size: tuple[int, int] | None, findings: FindingCollector
) -> Region | None:
    """Return the region of a shape in an image of this (height, width); None if only its box is known."""
    match shape.tag:
        case "polygon":
            return polygon_region([_points(shape)])
        case "ellipse":
            cx, cy, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
            return polygon_region([ellipse((cx, cy), (rx, ry), _rotation(shape))])
        case "mask" if size is not None:
            try:
                return _rle(shape, size)
            except ValueError as error:
                findings.add("malformed_mask", f"{where}: {error}")
    return None


def _rle(shape: Element, size: tuple[int, int]) -> Rle:
    """Return the mask of an element, whose run lengths are along the rows of its box, the first one outside.

    Raises:
        ValueError: The run lengths are malformed, or the box is not in the image.
    """
    left, top, width, height = (int(number) for number in _numbers(shape, "left", "top", "width", "height"))
    runs = np.array([int(text) for text in shape.get("rle", "").split(",")])
    if min(left, top) < 0 or left + width > size[1] or top + height > size[0] or min(width, height) < 1:
        raise ValueError(f"its box is not in the image of {size[0]}x{size[1]} (height x width)")
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width * height} pixels; expected at most {MAX_PIXELS:,}")
    if runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise ValueError(f"its run lengths do not add up to {width * height} pixels")
    return Rle.of_part(
        np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width), (top, left), size
    )


def _box(shape: Element) -> Corners | None:
    """Return the bounding box of a shape in pixels; None if it has no extent.

    Raises:
        ValueError: A coordinate is missing or not a number.
    """
    match shape.tag:
        case "box":
            x0, y0, x1, y1 = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
            degrees = _rotation(shape)
            if not degrees:
                return x0, y0, x1, y1
            center = ((x0 + x1) / 2, (y0 + y1) / 2)
            return bounding_box(rotated(rectangle(x0, y0, x1 - x0, y1 - y0), center, degrees))
        case "polygon" | "polyline":
            return bounding_box(_points(shape))
        case "ellipse":
            cx, cy, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
            return ellipse_box((cx, cy), (rx, ry), _rotation(shape))
        case "mask":
            x, y, width, height = _numbers(shape, "left", "top", "width", "height")
            return x, y, x + width, y + height
        case "cuboid":
            xs = _numbers(shape, *(f"x{corner}" for corner in _CUBOID))
            ys = _numbers(shape, *(f"y{corner}" for corner in _CUBOID))
            return bounding_box(list(zip(xs, ys, strict=True)))
        case _:
            return None


def _numbers(shape: Element, *names: str) -> list[float]:
    return [float(shape.get(name, "")) for name in names]


def _points(shape: Element) -> list[Point]:
    pairs = [text.split(",") for text in shape.get("points", "").split(";")]
    return [(float(x), float(y)) for x, y in pairs]


def _rotation(shape: Element) -> float:
    degrees = float(shape.get("rotation", "0"))
    if not math.isfinite(degrees):
        raise ValueError(degrees)
    return degrees


CVAT = Format(
    name="CVAT",
    expected="CVAT: an .xml file (annotations.xml)",
    splits=_splits,
)
