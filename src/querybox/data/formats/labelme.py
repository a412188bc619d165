"""labelme JSON: a file for each image, with shapes in pixels.

Every shape with an extent becomes its bounding box; polygons, circles and masks are masks, too. The files are beside
the images, in `<split>/` folders, or in a folder of their own. Embedded image data is not read. Shapes of one class
with the same `group_id` are parts of one object.
"""

from __future__ import annotations

import base64
import math
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_image
from querybox.data.bitmaps import place_bitmap, read_bitmap
from querybox.data.findings import FindingCollector
from querybox.data.locate import ImageLocator
from querybox.data.parsing import (
    NO_BOOL,
    Name,
    Number,
    json_head,
    read_head,
    stated_size,
    validation_problem,
)
from querybox.data.shapes import Point, bounding_box, ellipse, polygon_region, union
from querybox.data.splits import Format
from querybox.data.text import read_text
from querybox.errors import DataError, ImageError
from querybox.masks import Region, Rle

_WITHOUT_EXTENT = frozenset({"point", "points", "line"})


class _Shape(BaseModel):
    label: Name
    points: list[Point] = Field(min_length=1)
    shape_type: str | None = "polygon"  # before labelme 4, all shapes are polygons
    group_id: Annotated[int | str | None, NO_BOOL] = None
    mask: str | None = None  # a PNG in base64, whose upper left corner is the first of the points


class _Part(NamedTuple):
    """A shape of an object."""

    where: str
    corners: Sequence[Point]
    """Points whose bounding box is that of the shape."""
    region: Region | None


class _File(BaseModel):
    shapes: list[Any]
    path: str | None = Field(None, validation_alias="imagePath")
    height: Number | None = Field(None, validation_alias="imageHeight")
    width: Number | None = Field(None, validation_alias="imageWidth")


def _is_labelme(file: Path) -> bool:
    content = json_head(file)
    # In old files the image data precedes the shapes.
    return isinstance(content, dict) and ("shapes" in content or '"imageData"' in read_head(file))


def _parse(file: Path, locator: ImageLocator, findings: FindingCollector) -> AnnotatedImage:
    try:
        content = _File.model_validate_json(read_text(file, findings))
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_problem(error)}; expected labelme JSON, an object with 'shapes'"
        ) from None
    size = stated_size(content.height, content.width)
    return AnnotatedImage(
        name=_image_name(file, content.path, locator),
        where=str(file),
        size=size,
        objects=_objects(file, content.shapes, size, findings),
    )


def _image_name(file: Path, written: str | None, locator: ImageLocator) -> str:
    """Return the name of an image relative to the dataset's folder: as written, otherwise that of its file."""
    folder = file.parent.relative_to(locator.root).as_posix()
    if written and not written.endswith(".json"):  # as old versions wrote it beside embedded image data
        name = posixpath.join(folder, written.replace("\\", "/"))
        try:
            if locator.find(name) is not None:
                return name
        except ImageError:
            return name  # reported with the record
    return posixpath.join(folder, file.stem)


def _objects(
    file: Path, shapes: Sequence[Any], size: tuple[int, int] | None, findings: FindingCollector
) -> list[AnnotatedObject]:
    objects: defaultdict[tuple[str, int | str], list[_Part]] = defaultdict(list)
    for number, shape in enumerate(shapes, start=1):
        where = f"{file}, shape {number}"
        try:
            parsed = _Shape.model_validate(shape)
        except ValidationError as error:
            what = f"{where}: {validation_problem(error)}; expected 'label', 'points' and 'shape_type'"
            findings.add("malformed", what)
            continue
        if parsed.shape_type in _WITHOUT_EXTENT:
            findings.add("unsupported_shape", f"{where}, {parsed.shape_type}")
            continue
        if parsed.shape_type != "rectangle":
            findings.add("boxed_shape", where)
        try:
            region = _region(parsed, size)
        except (DataError, ValueError) as error:
            findings.add("malformed_mask", f"{where}: {error}")
            region = None
        key = number if parsed.group_id is None else f"group {parsed.group_id}"
        objects[parsed.label, key].append(_Part(where, _corners(parsed, region), region))
    return [
        AnnotatedObject(
            where=parts[0].where,
            category=label,
            box_xyxy=bounding_box([point for part in parts for point in part.corners]),
            mask=union([part.region for part in parts]),
        )
        for (label, _), parts in objects.items()
    ]


def _region(shape: _Shape, size: tuple[int, int] | None) -> Region | None:
    """Return the pixels of a shape in an image of this (height, width); None if they are not known.

    Raises:
        DataError: Its mask is not a PNG, or not in the image.
        ValueError: It is not in base64.
    """
    match shape.shape_type:
        case "circle" if len(shape.points) == 2:
            center, edge = shape.points
            return polygon_region([ellipse(center, (math.dist(center, edge),) * 2, 0)])
        case "polygon" | None:
            return polygon_region([shape.points])
        case "mask" if shape.mask is not None and size is not None:
            left, top = map(int, shape.points[0])
            return place_bitmap(read_bitmap(base64.b64decode(shape.mask)), (top, left), size)
        case _:
            return None


def _corners(shape: _Shape, region: Region | None) -> Sequence[Point]:
    """Return points whose bounding box is that of the shape, given its pixels if they are known."""
    # labelme writes the second point of a mask in the last pixel, or behind it.
    if isinstance(region, Rle) and (box := region.box_xyxy) is not None:
        return box[:2], box[2:]
    if shape.shape_type != "circle" or len(shape.points) != 2:
        return shape.points
    (x, y), edge = shape.points
    radius = math.dist((x, y), edge)
    return [(x - radius, y - radius), (x + radius, y + radius)]


LABELME = Format(
    name="labelme",
    expected="labelme: a folder with a .json file for each image",
    splits=partial(splits_by_image, suffix=".json", recognises=_is_labelme, parse=_parse),
)
