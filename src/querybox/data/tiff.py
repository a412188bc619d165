"""Parts of TIFFs that are too large to be decoded as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from querybox.data.deep import DeepValues, fraction_beyond, to_8_bits, warn_beyond
from querybox.data.image import (
    Examination,
    check_size,
    depth_notes,
    read_image,
    read_size,
)
from querybox.data.shards import ImageFile
from querybox.data.windows import Window
from querybox.errors import ImageError, MissingExtraError, QueryboxError, requires_extra
from querybox.files import restore
from querybox.pixels import ORIENTATION
from querybox.structures import PixelRange

if TYPE_CHECKING:
    from tifffile import TiffPage

MAX_TIFF_PIXELS = 2**32 - 1
"""Maximum number of pixels of a TIFF that is read in parts, which is that of COCO's run-length encoding."""
MAX_TIFF_SIDE = 2**20
"""Maximum width and height of a TIFF that is read in parts; it bounds the memory of a row."""
MAX_REDUCED = 2**24
"""Maximum number of pixels of the reduced image."""
CACHE = 2**28
"""Size of the decoded segments (strips or tiles of the file) that are kept for the next part, in bytes."""

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""
COMPRESSIONS = {
    1: "none",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    50000: "Zstandard",
}
"""Compressions that are read, by their number in the file."""
_JPEG = 7
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6


def is_tiff(path: Path) -> bool:
    """Return whether a file has the signature of a TIFF."""
    with path.open("rb") as file:
        return file.read(4) in SIGNATURES


def is_read_in_parts(path: ImageFile, error: ImageError) -> TypeGuard[Path]:
    """Return whether an image that cannot be read as a whole, because of this error, is a TIFF that is too large.

    Images in shards are read as a whole only.
    """
    return isinstance(path, Path) and error.kind == "too_large_image" and is_tiff(path)


def image_size(path: ImageFile) -> tuple[int, int]:
    """Return (height, width) of an image as `read_size` does, also of a TIFF that is read in parts.

    Raises:
        ImageError: As for `read_size`; also if a TIFF is too large and the package tifffile is not installed.
    """
    try:
        return read_size(path)
    except ImageError as error:
        if not is_read_in_parts(path, error):
            raise
        try:
            with open_tiff(path, (0.0, 1.0)) as image:  # any range, because no pixel is read
                return image.size
        except MissingExtraError:
            raise error from None


def read_picture(
    path: ImageFile, size: tuple[int, int] | None = None, *, pixel_range: PixelRange | None = None
) -> Image.Image:
    """Return an image for display: as `read_image` does, but reduced if it is a TIFF that is read in parts.

    Args:
        path: The file.
        size: (height, width) according to the annotations; see `read_image`.
        pixel_range: See `Preprocessing.pixel_range`.

    Raises:
        ImageError: As for `read_image` and `open_tiff`.
        MissingExtraError: The package tifffile is required and not installed.
    """
    try:
        return read_image(path, size, pixel_range=pixel_range)
    except ImageError as error:
        if not is_read_in_parts(path, error):
            raise
    with open_tiff(path, pixel_range, size) as image:
        return Image.fromarray(image.reduced())


def examine_tiff(
    path: Path, size: tuple[int, int] | None = None, *, pixel_range: PixelRange | None = None
) -> Examination:
    """Decode all parts of a TIFF and return what is found in it, as `examine_image` does.

    Args:
        path: The file.
        size: (height, width) according to the annotations; None if they do not state it.
        pixel_range: As for `open_tiff`.

    Raises:
        ImageError: As for `open_tiff`.
        MissingExtraError: The package tifffile is not installed.
    """
    with open_tiff(path, pixel_range, size) as image:
        for index in range(len(image.page.databytecounts)):
            image.values(index)
        if image.limits is None or not image.ranges:
            return Examination([])
        deep = DeepValues.joined(image.ranges)
        return Examination(list(depth_notes(path, deep, pixel_range)), deep)


@contextmanager
def open_tiff(
    path: Path, pixel_range: PixelRange | None = None, size: tuple[int, int] | None = None
) -> Iterator[TiffParts]:
    """Context manager that opens a TIFF for reading in parts.

    Args:
        path: The file.
        pixel_range: See `Preprocessing.pixel_range`.
        size: (height, width) according to the annotations; None for any.

    Raises:
        ImageError: The file is corrupt, of a kind that is not read in parts, or not of size `size`. Also raised if a
            part cannot be read.
        MissingExtraError: The package tifffile is not installed.
    """
    with requires_extra("tiff", f"{path}: reading it in tiles"):
        import imagecodecs  # noqa: F401 - tifffile imports it when it is needed
        import tifffile
    try:
        with tifffile.TiffFile(path) as file:
            image = TiffParts(path, file.pages.first, pixel_range)
            check_size(path, size, image.size, image.size)
            yield image
    except (QueryboxError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise all kinds of errors
        raise ImageError(f"{path}: cannot be read as a TIFF ({error}); replace or remove it") from None


class TiffParts:
    """A TIFF of which parts are decoded. Like `read_image` it gives 8-bit RGB of the first page.

    Attributes:
        size: (height, width) in pixels.
        segment: (height, width) of the strips or tiles of the file in pixels.
        limits: The values that become 0 and 255; None for pixels of 8 bits.
        ranges: The ranges of the strips or tiles that have been decoded, of pixels of more than 8 bits.
    """

    def __init__(self, path: Path, page: TiffPage, pixel_range: PixelRange | None) -> None:
        self.path = path
        self.page = page
        self.size = (page.imagelength, page.imagewidth)
        strip = (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        self.segment = (page.tilelength, page.tilewidth) if page.is_tiled else strip
        self.check()
        self.limits = self.value_limits(pixel_range)
        self.ranges: list[DeepValues] = []
        self.decode = lru_cache(max(1, CACHE // (3 * math.prod(self.segment))))(self.decode_segment)

    def check(self) -> None:
        """Raise ImageError if the file is of a kind that is not read in parts."""
        page, (height, width) = self.page, self.size
        compressions = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        if height * width > MAX_TIFF_PIXELS or not 0 < min(self.size) <= max(self.size) <= MAX_TIFF_SIDE:
            limits = f"at most {MAX_TIFF_PIXELS:,} pixels, and {MAX_TIFF_SIDE:,} along a side"
            raise self.error(f"{height}x{width} pixels (height x width)", limits)
        if page.compression not in COMPRESSIONS:
            raise self.error(f"compression {page.compression}", compressions)
        channels = page.samplesperpixel
        if (
            page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR)
            or not 1 <= channels <= 4
            or page.imagedepth != 1
        ):
            raise self.error(f"colours {page.photometric} in {channels} channels", "gray or RGB")
        bits = page.bitspersample
        if page.dtype is None or not isinstance(bits, int) or bits < 8:
            raise self.error(f"{bits} bits a channel", "8 or more")
        if page.planarconfig != 1 and channels > 1:
            raise self.error("colours in separate planes", "the colours of a pixel together")
        if (orientation := page.tags.valueof(ORIENTATION, 1)) != 1:
            raise self.error(f"orientation {orientation}", "1 (upright)")
        segment = math.prod(self.segment) * channels * page.dtype.itemsize
        if not 0 < segment <= CACHE:
            raise self.error(f"strips or tiles of {segment:,} bytes", f"at most {CACHE:,}")

    def error(self, found: str, expected: str) -> ImageError:
        """Return the error of a file that is not read in parts."""
        return ImageError(
            f"{self.path}: has {found}, which is not read in parts; expected {expected}: save it as a TIFF of 8-bit "
            "RGB with tiles"
        )

    def value_limits(self, pixel_range: PixelRange | None) -> PixelRange | None:
        """Return the values that become 0 and 255; None if the pixels have 8 bits.

        Raises:
            ImageError: They can have any value, and `pixel_range` is None.
        """
        dtype = self.page.dtype
        if dtype == np.uint8:
            return None
        if pixel_range is None and dtype != np.uint16:
            raise ImageError(
                f"{self.path}: has {dtype} pixels of unknown range; set data.depth=[LOW,HIGH] in training, or save it "
                "with 8 or 16 bits",
                "unknown_range",
            )
        return pixel_range or (0.0, 2.0**self.page.bitspersample - 1)

    def read(self, window: Window) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a window, which lies within the image."""
        left, top, width, height = window
        tall, wide = self.segment
        columns = math.ceil(self.size[1] / wide)
        pixels = np.zeros((height, width, 3), np.uint8)
        for row in range(top // tall, (top + height - 1) // tall + 1):
            for column in range(left // wide, (left + width - 1) // wide + 1):
                y, x = row * tall - top, column * wide - left  # of the segment, in the window
                part = self.decode(row * columns + column)[max(0, -y) : height - y, max(0, -x) : width - x]
                y, x = max(0, y), max(0, x)
                pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        return pixels

    def decode_segment(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a strip or a tile of the file; one that is empty is black."""
        values = self.values(index)
        return np.zeros((*self.segment, 3), np.uint8) if values is None else self.to_rgb(values)

    def range_of(self, values: Shaped[np.ndarray, "h w S"], index: int) -> DeepValues:
        """Return the range of the values of a strip or a tile, without those that exceed the image."""
        (height, width), (tall, wide) = self.size, self.segment
        row, column = divmod(index, math.ceil(width / wide))
        values = values[: height - row * tall, : width - column * wide]
        top = 2**self.page.bitspersample - 1
        return DeepValues(float(values.min()), float(values.max()), top, fraction_beyond(values, self.limits))

    def values(self, index: int) -> Shaped[np.ndarray, "h w S"] | None:
        """Return the values of a strip or a tile of the file as stored, without alpha; None if it is empty."""
        page, file = self.page, self.page.parent.filehandle
        count = page.databytecounts[index]
        if count > file.size:
            raise ImageError(
                f"{self.path}: is truncated: a part has {count:,} bytes, but the file {file.size:,}; "
                f"{restore(self.path)}"
            )
        if count == 0:
            return None
        file.seek(page.dataoffsets[index])
        data = file.read(count)
        if page.compression == _JPEG:
            self.check_jpeg(data)
        values, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        assert values is not None  # there are data
        values = values[0, ..., : 3 if page.samplesperpixel >= 3 else 1]
        if self.limits is not None:
            self.ranges.append(self.range_of(values, index))
        return values

    def check_jpeg(self, data: bytes) -> None:
        """Raise ImageError if a JPEG is larger than a strip or a tile; other decoders stop at its size themselves."""
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            if image.height > self.segment[0] or image.width > self.segment[1]:
                raise ImageError(
                    f"{self.path}: a part is {image.height}x{image.width}; expected at most "
                    f"{self.segment[0]}x{self.segment[1]} (height x width): save it again"
                )

    def to_rgb(self, values: Shaped[np.ndarray, "h w S"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return values as 8-bit RGB: gray is repeated."""
        pixels = values if self.limits is None else to_8_bits(values, self.limits)
        if self.page.photometric == _WHITE_IS_ZERO:
            pixels = 255 - pixels
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def reduced(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the whole image, each pixel the mean of a square of pixels, with at most `MAX_REDUCED` pixels."""
        height, width = self.size
        factor = math.ceil(math.sqrt(height * width / MAX_REDUCED))
        rows = factor * max(1, MAX_REDUCED // (factor * width))
        bands = [
            Image.fromarray(self.read(Window(0, top, width, min(rows, height - top)))).reduce(factor)
            for top in range(0, height, rows)
        ]
        if self.ranges:
            warn_beyond(self.path, DeepValues.joined(self.ranges), self.limits)
        return np.concatenate([np.asarray(band) for band in bands])
