"""Masks of COCO's `segmentation`: polygons, and run lengths (RLE), plain and compressed."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from querybox.data.image import MAX_PIXELS
from querybox.data.parsing import NO_BOOL, Number, validation_problem
from querybox.data.tiff import MAX_TIFF_PIXELS
from querybox.errors import DataError
from querybox.masks import Region, Rle, compress
from querybox.polygons import Polygons

Box = tuple[Number, Number, Number, Number]  # x, y, width, height
StatedBox = Annotated[Box | None, BeforeValidator(lambda value: None if value == [] else value)]
"""A box as it is written; some tools write an empty list, if it is not known."""

_Count = Annotated[int, Field(ge=0, le=MAX_TIFF_PIXELS)]
_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS), NO_BOOL]
_PARTS = TypeAdapter(list[Annotated[list[float], NO_BOOL]])


class _RunLengths(BaseModel):
    size: tuple[_Side, _Side]  # height, width
    counts: Annotated[list[_Count] | str, NO_BOOL]


def mask_box(segmentation: object) -> Box | None:
    """Return the bounding box of an object from its polygons or its mask, in pixels.

    Args:
        segmentation: The value of the key in the file.

    Returns:
        None if it is neither, or malformed, or the mask is empty.
    """
    try:
        if isinstance(segmentation, dict):
            box_xyxy = _rle(_RunLengths.model_validate(segmentation)).box_xyxy
            if box_xyxy is None:
                return None
            left, top, right, bottom = box_xyxy
            return left, top, right - left, bottom - top
        polygons = _polygons(segmentation)
    except (ValidationError, ValueError):
        return None
    if not polygons:
        return None
    x, y = ([value for polygon in polygons for value in polygon[start::2]] for start in (0, 1))
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def read_mask(segmentation: object) -> Region | None:
    """Return the region of an object; None if there is none, which some tools write as ``[[]]``.

    Args:
        segmentation: The value of the key in the file.

    Raises:
        DataError: It is neither polygons nor a mask, or a mask of too many pixels.
    """
    if not segmentation or segmentation == [[]]:
        return None
    try:
        if isinstance(segmentation, dict):
            return _rle(_RunLengths.model_validate(segmentation))
        polygons = _polygons(segmentation)
    except (ValidationError, UnicodeEncodeError) as error:
        problem = validation_problem(error)
        raise DataError(
            f"segmentation: {problem}; expected polygons, or a mask with 'size' and 'counts'"
        ) from None
    return Polygons.of(polygons)


def _polygons(segmentation: object) -> list[list[float]]:
    """Return polygons without those of less than three vertices, which have no inside.

    Raises:
        ValidationError: They are not lists of numbers.
    """
    parts = _PARTS.validate_python(segmentation)
    return [polygon for polygon in parts if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _rle(mask: _RunLengths) -> Rle:
    """Return a mask in compressed form.

    Raises:
        DataError: The image is too large.
        ValueError: The compressed string has other characters than ASCII.
    """
    height, width = mask.size
    if height * width > MAX_TIFF_PIXELS:
        raise DataError(
            f"a mask has the size {height}x{width}; expected at most {MAX_TIFF_PIXELS:,} pixels, as many as the "
            "largest images that are read have (TIFFs, on tiles): divide the image, or draw polygons"
        )
    if isinstance(mask.counts, str):
        return Rle(mask.size, mask.counts.encode("ascii"))
    return Rle(mask.size, compress(np.array(mask.counts, dtype=np.int64)))
