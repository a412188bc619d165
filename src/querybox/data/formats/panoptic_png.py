"""The PNGs of COCO's panoptic format: each pixel has the number of its segment, R + 256 G + 256^2 B; 0 is void."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from querybox.data.bitmaps import open_png
from querybox.errors import DataError
from querybox.masks import Rle

MAX_ID = 2**24 - 1
"""The largest number of a segment."""
_CHUNK = 1 << 22
"""Number of pixels that are converted at once; it bounds the memory."""


def segment_id(number: int) -> int:
    """Return the id of the n-th segment, which is below 2^24 and unique, with a distinct colour; 0 for 0."""
    return number * 0x9E3779B1 % 2**24  # an odd factor: the golden ratio times 2^32


def colours(numbers: Int32[np.ndarray, "H W"], count: int) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of a PNG.

    Args:
        numbers: Segment of each pixel, 1 ... S; 0 = void.
        count: Number of segments, S.
    """
    ids = np.array([segment_id(number) for number in range(count + 1)])
    palette = (ids[:, None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)  # [S+1, 3]
    return palette[numbers]


def read_segments(
    path: Path, size: tuple[int, int], ids: Collection[int]
) -> tuple[dict[int, Rle], Int64[np.ndarray, " U"]]:
    """Return the masks of the segments that have pixels, and the numbers of other segments in the PNG.

    Args:
        path: The PNG.
        size: (height, width) of its image in pixels.
        ids: The numbers of the segments.

    Raises:
        DataError: It is not a PNG, has too many pixels or another size, or is not in colour.
    """
    starts, values = _runs(path, size)
    stops = np.append(starts[1:], size[0] * size[1])
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    masks = {}
    for number in ids:
        first, last = (int(np.searchsorted(ordered, number, side)) for side in ("left", "right"))
        if first < last:
            runs = order[first:last]
            masks[number] = Rle.of_changes(np.stack([starts[runs], stops[runs]], 1).ravel(), size)
    return masks, np.setdiff1d(values, [0, *ids])


def _runs(path: Path, size: tuple[int, int]) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """Return the first positions of runs of one segment, counted down the columns of the image, and their numbers."""
    height, width = size
    starts, values, last = [], [], -1
    with open_png(path, str(path)) as image:
        if (image.height, image.width) != size:
            raise DataError(
                f"{path}: is {image.height}x{image.width} (height x width); its image is {height}x{width}"
            )
        if image.mode not in {"RGB", "RGBA"}:
            raise DataError(
                f"{path}: is in mode {image.mode}; expected RGB, with R + 256 G + 256^2 B as number"
            )
        step = max(1, _CHUNK // height)
        for left in range(0, width, step):
            part = image.crop((left, 0, min(left + step, width), height)).convert("RGBA")
            numbers = (np.asarray(part).view("<u4")[..., 0].T.ravel() & MAX_ID).astype(np.int64)
            changes = np.flatnonzero(np.diff(numbers, prepend=last))
            starts.append(changes + left * height)
            values.append(numbers[changes])
            last = int(numbers[-1])
    return np.concatenate(starts), np.concatenate(values)
