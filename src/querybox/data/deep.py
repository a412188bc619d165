"""Pixels of more than 8 bits: their values, the range of the values, and their conversion to 8 bits."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2, TiffImageFile

from querybox.data.encoded import EncodedImage, open_binary
from querybox.errors import ImageError
from querybox.structures import PixelRange
from querybox.text import counted

logger = logging.getLogger(__name__)

Values: TypeAlias = Shaped[np.ndarray, "h w"] | Shaped[np.ndarray, "h w 3"]
"""Values of gray or RGB pixels: integers of 16 or 32 bits, or floats."""

NARROW = 0.25
"""Fraction of the range of more than 8 bits; images whose values use less are nearly black, or of one gray."""

BEYOND = 0.9
"""Fraction of the values of an image beyond the range that is given, with which it is nearly black or white."""

_TOP = 65535
"""Largest value of 16 bits."""
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION = 258, 262, 284  # TIFF tags
_SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 277, 339
_SAMPLE_FORMATS = {
    1: "integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}
_GRAY_WITH_ALPHA = "LA;16B"
_LOWER_BYTES = {_GRAY_WITH_ALPHA: "RGBA"} | {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBX", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
"""Raw modes with which Pillow decodes the upper byte of each 16-bit value, and those that decode the lower one: that of
the other byte order. Gray with alpha is decoded as its four bytes. (CMYK and premultiplied alpha stay at 8 bits.)"""


_warned: set[PixelRange] = set()
"""The ranges that `warn_beyond` has logged an image of in this process."""


class DeepValues(NamedTuple):
    """The range of the pixel values of images with more than 8 bits."""

    low: float
    high: float
    top: float
    """Largest value that this number of bits can hold."""
    beyond: float = 0.0
    """Fraction of the values (0-1) that are beyond the range that is given, if there is one."""

    @classmethod
    def joined(cls, parts: Sequence[DeepValues]) -> Self:
        """Return the range of all parts of an image, which are of about the same size."""
        lows, highs, tops, beyond = zip(*parts, strict=True)
        return cls(min(lows), max(highs), max(tops), sum(beyond) / len(parts))

    def problem(self, pixel_range: PixelRange) -> str:
        """Return in words that nearly all values are beyond the range that is given; an empty text if they are not."""
        if self.beyond < BEYOND:
            return ""
        low, high = pixel_range
        return (
            f"{math.floor(100 * self.beyond)} % of its values, which are {self.low:g} to {self.high:g}, are beyond "
            f"{low:g} to {high:g}"
        )


def raw_mode_of(image: Image.Image) -> str | None:
    """Return how Pillow will decode an image that was just opened; None if its format has no such mode.

    A decoded image has forgotten it, and `Image.Image.getexif` decodes PNGs whose EXIF data may follow the pixels.
    """
    args = image.tile[0].args if isinstance(image, ImageFile) and image.tile else None
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else None


def load(image: Image.Image, raw_mode: str | None, path: str | Path | EncodedImage) -> Values | None:
    """Decode an image, and return its pixel values if they have more than 8 bits.

    Pillow decodes 16-bit gray as it is, but of 16-bit colours only the upper bytes, so that the file is decoded a
    second time for the lower ones.

    Args:
        image: The opened image.
        raw_mode: See `raw_mode_of`.
        path: Its file.

    Raises:
        ImageError: It is a TIFF with 16-bit colours in separate planes, which Pillow decodes wrongly.
    """
    if _has_deep_planes(image):
        raise ImageError(f"{path}: has 16-bit colours in separate planes, which are not read; save it as PNG")
    assert image.format is not None
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image)
    if raw_mode not in _LOWER_BYTES:
        return None
    upper = np.asarray(image)[..., :3].astype(np.uint16)
    with open_binary(path) as file, Image.open(file, formats=[image.format]) as again:
        again.tile = [
            tile._replace(args=_with_raw_mode(tile.args, _LOWER_BYTES[raw_mode])) for tile in again.tile
        ]
        lower = np.asarray(again)
    return upper << 8 | (lower[..., [1, 1, 1]] if raw_mode == _GRAY_WITH_ALPHA else lower[..., :3])


def _has_deep_planes(image: Image.Image) -> bool:
    return (
        isinstance(image, TiffImageFile)
        and image.tag_v2.get(_PLANAR_CONFIGURATION) == 2
        and len(image.getbands()) > 1
        and _stated_bits(image) > 8
    )


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return raw_mode if isinstance(args, str) else (raw_mode, *args[1:])


def value_range(
    values: Values, image: Image.Image, path: str | Path | EncodedImage, pixel_range: PixelRange | None
) -> DeepValues:
    """Return the range of the pixel values of an image with more than 8 bits.

    The number of bits is 16 unless a TIFF states fewer, as those of 10 and 12-bit cameras do.

    Raises:
        ImageError: The values can be of any range, and `pixel_range` is None.
    """
    low, high = float(values.min()), float(values.max())
    if pixel_range is None and (image.mode == "F" or low < 0 or high > _TOP):
        kind = "float" if image.mode == "F" else "32-bit"
        raise ImageError(
            f"{path}: has {kind} pixels of unknown range; set data.depth=[LOW,HIGH] in training, or save it with 8 or "
            "16 bits",
            "unknown_range",
        )
    bits = _stated_bits(image)
    top = 2**bits - 1 if 8 < bits < 16 else _TOP
    return DeepValues(low, high, top if high <= top else _TOP, fraction_beyond(values, pixel_range))


def fraction_beyond(values: Shaped[np.ndarray, "*shape"], pixel_range: PixelRange | None) -> float:
    """Return the fraction of values that are beyond a range, if there is one."""
    if pixel_range is None:
        return 0.0
    low, high = pixel_range
    if low <= values.min() and values.max() <= high:  # as usual, and found in a tenth of the time
        return 0.0
    return float(((values < low) | (values > high)).mean())


def warn_beyond(path: str | Path | EncodedImage, values: DeepValues, pixel_range: PixelRange | None) -> None:
    """Log the first image of this process that a range makes nearly black or white; see `DeepValues.problem`."""
    if pixel_range is not None and pixel_range not in _warned and (problem := values.problem(pixel_range)):
        _warned.add(pixel_range)
        logger.warning(
            "%s: %s, which become black and white, so that it shows nearly nothing; scale such images to this range "
            "(further ones are not named), or train with another data.depth",
            path,
            problem,
        )


def _stated_bits(image: Image.Image) -> int:
    """Return the bits of a channel that a TIFF states; 16 for other images."""
    stated = image.tag_v2.get(_BITS_PER_SAMPLE) if isinstance(image, TiffImageFile) else None
    return stated[0] if isinstance(stated, tuple) and stated else 16


def pixels_of_tiff(path: str | Path | EncodedImage) -> str | None:
    """Return in words the pixels that a TIFF states; None if it is no TIFF, or damaged."""
    with open_binary(path) as file:
        header = file.read(16)
        if not header.startswith(tuple(PREFIXES)):
            return None
        try:
            tags = ImageFileDirectory_v2(
                header if b"+" in header[:4] else header[:8]
            )  # of a BigTIFF all of it
            file.seek(tags.next)
            tags.load(file)
            bits, kinds = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
            channels = counted(tags.get(_SAMPLES_PER_PIXEL, 1), "channel")
            return f"{channels} of {bits[0]}-bit {_SAMPLE_FORMATS.get(kinds[0], 'values')}"
        except Exception:  # noqa: BLE001 - Pillow raises all kinds of errors
            return None


def is_white_zero(image: Image.Image) -> bool:
    """Return whether an image is a TIFF in which 0 is white, which Pillow ignores in pixels of more than 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC_INTERPRETATION) == 0


def to_8_bits(values: Shaped[np.ndarray, "*shape"], pixel_range: PixelRange) -> UInt8[np.ndarray, "*shape"]:
    """Scale values so that the lower end of the range becomes 0 and the upper 255; values beyond it are clipped."""
    if values.dtype == np.uint16:  # a table is faster, and takes less memory than floats
        return to_8_bits(np.arange(_TOP + 1, dtype=np.float64), pixel_range)[values]
    low, high = pixel_range
    offset = np.nan_to_num(values.astype(np.float64).clip(low, high), nan=low) - low
    return np.round(offset / ((high - low) / 255)).astype(np.uint8)
