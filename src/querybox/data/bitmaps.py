"""Masks that are stored as images: in the files of annotation tools, and the palette images of Pascal VOC."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from querybox.errors import DataError
from querybox.masks import Rle


def read_bitmap(content: bytes) -> Bool[np.ndarray, "h w"]:
    """Return which pixels of a PNG are in the mask: those that are not transparent or, without transparency, not black.

    Raises:
        DataError: It is not a PNG, or has more than `MAX_PIXELS` pixels.
    """
    with open_png(io.BytesIO(content), "a bitmap") as image:
        if "A" in image.getbands() or "transparency" in image.info:
            return np.asarray(image.convert("RGBA"))[..., 3] > 0
        return np.asarray(image.convert("L")) > 0


def read_indices(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Return the numbers of an image with a palette, or the values of one in grayscale.

    Raises:
        DataError: It is not a PNG, has more than `MAX_PIXELS` pixels, or is in colour.
    """
    with open_png(path, str(path)) as image:
        if image.mode not in {"P", "L"}:
            raise DataError(
                f"{path}: is in mode {image.mode}; expected a palette, with the number of an object as index"
            )
        return np.asarray(image)


def place_bitmap(bitmap: Bool[np.ndarray, "h w"], corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """Return the mask of an image of `size` (height, width) that has a bitmap at its `corner` (top, left).

    Raises:
        DataError: The bitmap leaves the image.
    """
    (top, left), (height, width) = corner, bitmap.shape
    if min(corner) < 0 or top + height > size[0] or left + width > size[1]:
        raise DataError(
            f"a bitmap of {height}x{width} (height x width) at x {left}, y {top} is not in the image of "
            f"{size[0]}x{size[1]}"
        )
    return Rle.of_part(bitmap, corner, size)


@contextmanager
def open_png(file: Path | io.BytesIO, where: str) -> Iterator[Image.Image]:
    """Open a PNG.

    Args:
        file: Its path or content.
        where: What it is, for messages.

    Raises:
        DataError: It is not a PNG, has more than `MAX_PIXELS` pixels, or cannot be decoded within the context.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # of more than MAX_PIXELS
            image = Image.open(file, formats=("PNG",))
        with image:
            yield image
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise all kinds of errors
        raise DataError(f"{where}: cannot be read as a PNG ({error})") from None
