"""Supervisely JSON: `ann/photo.jpg.json` for `img/photo.jpg`, in a folder for each dataset of a project.

Rectangles, polygons, lines and bitmaps, in pixels, become their bounding box; polygons and bitmaps are masks, too.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_image
from querybox.data.bitmaps import place_bitmap, read_bitmap
from querybox.data.findings import Corners, FindingCollector
from querybox.data.image import MAX_PIXELS
from querybox.data.locate import ImageLocator
from querybox.data.parsing import Name, Number, json_head, stated_size, validation_problem
from querybox.data.shapes import Point, bounding_box, polygon_region, with_holes
from querybox.data.splits import Format
from querybox.data.text import read_text
from querybox.errors import DataError
from querybox.masks import Region, Rle

_PNG_SIZE = slice(16, 24)
"""Bytes of a PNG with its width and height."""


class _Points(BaseModel):
    exterior: list[Point] = Field(min_length=1)
    interior: list[list[Point]] = []  # holes


class _Bitmap(BaseModel):
    data: str  # a PNG, compressed by zlib, in base64
    origin: Point

    @property
    def box(self) -> Corners:
        """The box of the bitmap in pixels, from the header of the PNG.

        Raises:
            ValueError: It is not a PNG.
        """
        try:
            png = zlib.decompressobj().decompress(base64.b64decode(self.data), _PNG_SIZE.stop)
            width, height = struct.unpack(">II", png[_PNG_SIZE])
        except (zlib.error, struct.error) as error:
            raise ValueError(str(error)) from None
        x, y = self.origin
        return x, y, x + width, y + height

    def mask(self, size: tuple[int, int]) -> Rle:
        """Return the mask in an image of this (height, width).

        Raises:
            DataError: The PNG is malformed or too large, or not in the image.
        """
        try:
            png = zlib.decompressobj().decompress(base64.b64decode(self.data), MAX_PIXELS)
        except zlib.error as error:
            raise DataError(f"a bitmap: {error}; expected a PNG, compressed by zlib") from None
        if not all(map(math.isfinite, self.origin)):
            raise DataError(f"a bitmap has the origin {self.origin}; expected finite numbers")
        left, top = map(int, self.origin)
        return place_bitmap(read_bitmap(png), (top, left), size)


class _Object(BaseModel):
    category: Name = Field(validation_alias="classTitle")
    geometry: str = Field("polygon", validation_alias="geometryType")
    points: _Points | None = None
    bitmap: _Bitmap | None = None


class _Size(BaseModel):
    height: Number | None = None
    width: Number | None = None


class _File(BaseModel):
    objects: list[Any]
    size: _Size = _Size()


def _is_supervisely(file: Path) -> bool:
    content = json_head(file) if file.parent.name == "ann" else None
    return isinstance(content, dict) and content.keys() >= {"size", "objects"}


def _parse(file: Path, locator: ImageLocator, findings: FindingCollector) -> AnnotatedImage:
    try:
        content = _File.model_validate_json(read_text(file, findings))
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_problem(error)}; expected Supervisely JSON, with 'size' and 'objects'"
        ) from None
    folder = file.parent.relative_to(locator.root)
    images = folder.with_name("img") if folder.name else folder
    image = AnnotatedImage(
        name=(images / file.stem).as_posix(),
        where=str(file),
        size=stated_size(content.size.height, content.size.width),
    )
    for number, item in enumerate(content.objects, start=1):
        _add_object(image, f"{file}, object {number}", item, findings)
    return image


def _add_object(image: AnnotatedImage, where: str, item: Any, findings: FindingCollector) -> None:
    try:
        parsed = _Object.model_validate(item)
        box = _box(parsed)
    except ValueError as error:
        problem = validation_problem(error)
        findings.add("malformed", f"{where}: {problem}; expected 'classTitle', and 'points' or 'bitmap'")
        return
    if box is None:
        findings.add("unsupported_shape", f"{where}, {parsed.geometry}")
        return
    if parsed.geometry != "rectangle":
        findings.add("boxed_shape", where)
    try:
        mask = _region(parsed, image.size)
    except DataError as error:
        findings.add("malformed_mask", f"{where}: {error}")
        mask = None
    image.objects.append(AnnotatedObject(where, parsed.category, box, mask=mask))


def _region(item: _Object, size: tuple[int, int] | None) -> Region | None:
    """Return the pixels of an object in an image of this (height, width); None if only its box is known.

    Raises:
        DataError: See `_Bitmap.mask`.
    """
    if item.bitmap is not None:
        return None if size is None else item.bitmap.mask(size)
    if item.points is None or item.geometry != "polygon":
        return None
    return polygon_region([with_holes(item.points.exterior, item.points.interior)])


def _box(item: _Object) -> Corners | None:
    """Return the bounding box of an object; None if it has no extent.

    Raises:
        ValueError: Its bitmap is not a PNG.
    """
    if item.bitmap is not None:
        return item.bitmap.box
    if item.points is None or item.geometry == "point":
        return None
    return bounding_box(item.points.exterior)


SUPERVISELY = Format(
    name="Supervisely",
    expected="Supervisely: a folder with img/, and ann/ with a .json file for each image",
    splits=partial(splits_by_image, suffix=".json", recognises=_is_supervisely, parse=_parse),
)
