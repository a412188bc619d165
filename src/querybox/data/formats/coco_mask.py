"""Bounding boxes of COCO's masks: polygons, and run lengths (RLE), plain and compressed.

The format is that of https://github.com/cocodataset/cocoapi (common/maskApi.h): runs of pixels outside and inside the
object alternate, down the columns of the image; compressed, they are in groups of 5 bits, one character each.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from jaxtyping import Int64
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from querybox.data.image import MAX_PIXELS

Box = tuple[float, float, float, float]  # x, y, width, height

_Count = Annotated[int, Field(ge=0, le=MAX_PIXELS)]
_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
_POLYGONS = TypeAdapter(Annotated[list[Annotated[list[float], Field(min_length=6)]], Field(min_length=1)])
_MAX_GROUPS = 7
"""Groups of 5 bits that a run length can take, because no image has 2^32 pixels."""


class _RunLengths(BaseModel):
    size: tuple[_Side, _Side]  # height, width
    counts: list[_Count] | str


def mask_box(segmentation: object) -> Box | None:
    """Return the bounding box of an object from its polygons or its mask, in pixels.

    Args:
        segmentation: The value of the key in the file.

    Returns:
        None if it is neither, or malformed, or the mask is empty.
    """
    try:
        if isinstance(segmentation, dict):
            return _box_of_runs(_RunLengths.model_validate(segmentation))
        polygons = _POLYGONS.validate_python(segmentation)
    except (ValidationError, ValueError):
        return None
    x, y = ([value for polygon in polygons for value in polygon[start::2]] for start in (0, 1))
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def _box_of_runs(mask: _RunLengths) -> Box | None:
    height, width = mask.size
    runs = np.asarray(
        decompress(mask.counts) if isinstance(mask.counts, str) else mask.counts, dtype=np.int64
    )
    if height * width > MAX_PIXELS or runs.sum() != height * width:
        raise ValueError("the run lengths do not add up to the image")
    ends = np.cumsum(runs)
    inside: Int64[np.ndarray, " R"] = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(inside):
        return None
    first, last = ends[inside] - runs[inside], ends[inside] - 1
    left, right = int(first[0]) // height, int(last[-1]) // height
    if (
        first // height < last // height
    ).any():  # a run from one column to the next has the last and the first row
        top, bottom = 0, height - 1
    else:
        top, bottom = int((first % height).min()), int((last % height).max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def decompress(text: str) -> list[int]:
    """Return the run lengths in a compressed string; from the fourth on it has differences to the last but one.

    Raises:
        ValueError: The string is malformed.
    """
    counts: list[int] = []
    value = groups = 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64 or groups == _MAX_GROUPS:
            raise ValueError("invalid character or number in compressed run lengths")
        value |= (bits & 31) << 5 * groups
        groups += 1
        if bits & 32:  # more groups follow
            continue
        if bits & 16:  # negative
            value -= 1 << 5 * groups
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = groups = 0
    if groups or min(counts, default=0) < 0:
        raise ValueError("truncated or negative run lengths")
    return counts
