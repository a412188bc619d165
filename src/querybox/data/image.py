"""Read image files as 8-bit RGB, upright."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from os import SEEK_CUR
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from querybox.data.deep import (
    NARROW,
    DeepValues,
    is_white_zero,
    load,
    pixels_of_tiff,
    raw_mode_of,
    to_8_bits,
    value_range,
    warn_beyond,
)
from querybox.data.encoded import EncodedImage, open_binary
from querybox.data.shards import ImageFile, loaded
from querybox.errors import ImageError
from querybox.files import require_regular
from querybox.pixels import ORIENTATION, forget_orientation, to_rgb
from querybox.structures import PixelRange

MAX_PIXELS = 89_478_485
"""Maximum number of pixels of an image, 256 MiB as RGB. Larger images are rejected without decoding them."""
_TOO_LARGE = (
    "make it smaller, or save it as a TIFF with tiles, which querybox[tiff] reads in parts with tile=640"
)

_JPEG = (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo")
_OTHERS = (".bmp", ".dib", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
_MODERN = (".avif", ".j2k", ".jp2")
_UNSUPPORTED = (".dcm", ".heic", ".heif", ".jxl")
SUFFIXES = frozenset({*_JPEG, *_OTHERS, *_MODERN, *_UNSUPPORTED})
"""File name extensions (lower case) of images when searching a folder. Those that Pillow cannot read (DICOM, JPEG XL,
HEIC) are among them so that they are reported instead of ignored."""

FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),  # since Pillow 11.3
    "TGA",  # has no signature, so it is tried last
)
"""Formats that are decoded, by Pillow's names. Pillow has others, some of which run programs: EPS runs Ghostscript."""

MAX_PPM_HEADER = 65_536
"""Maximum size of the header of a PPM, with its comments, in bytes. Pillow reads it byte by byte."""
_PPM_KINDS = tuple(kind.encode() for kind in "0123456fy")
_PPM_COMMENT = re.compile(rb"#[^\r\n]*")

_PNG_SIGNATURE = 8
"""Length of the signature in bytes, after which the chunks of a PNG follow."""
_PNG_CHUNK = 12
"""Length in bytes of what a chunk has beside its data: the length, the type and, behind the data, a checksum."""
_PNG_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Keywords of texts in which Pillow finds an orientation."""

JPEG_SUFFIXES = frozenset({".jpeg", ".jpg"})

ROTATED = frozenset(range(2, 9))
"""Orientations that rotate or mirror an image."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations that swap height and width."""


class Examination(NamedTuple):
    """What is found in an image file."""

    findings: list[tuple[str, str]]
    """Kinds of `querybox.data.findings.KINDS`, each with a description."""
    deep: DeepValues | None = None
    """The values of its pixels, if they have more than 8 bits."""


def read_image(
    path: str | ImageFile | EncodedImage,
    size: tuple[int, int] | None = None,
    *,
    min_side: int | None = None,
    pixel_range: PixelRange | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Read one image as 8-bit RGB.

    Every mode is converted to RGB: grayscale is repeated, palettes are resolved, transparency is dropped, CMYK is
    converted, 16-bit values are divided by 257 (those of TIFFs with 9 to 15 bits by less, so that the largest becomes
    255) unless `pixel_range` is given. The EXIF orientation is applied. Of an animated image the first frame is read.

    Args:
        path: The image file, which may be in a shard, or its content; its format is recognised from its content.
        size: (height, width) according to the annotations. If the image has this size only without its EXIF
            orientation, the annotations refer to the stored pixels, and the orientation is not applied.
        min_side: Decode JPEGs at 1/2, 1/4 or 1/8 of their size, which is much faster, as far as their short side stays
            at least this many pixels; None to decode them as they are. See `reduction`.
        pixel_range: Values of images with more than 8 bits that become 0 and 255; see `Preprocessing.pixel_range`.
        max_pixels: Number of pixels above which an image is rejected without decoding it; None for `MAX_PIXELS`.

    Raises:
        ImageError: The file is missing, corrupt, not an image, larger than `max_pixels`, or not of size `size`; or it
            has float or 32-bit pixels and `pixel_range` is None.
    """
    file = loaded(path)
    with _opened(file, max_pixels) as image:
        raw_mode = raw_mode_of(image)
        stored, rotated = _sizes(image)
        if min_side is not None and isinstance(image, JpegImageFile):
            factor = reduction(min(stored), min_side)
            image.draft(image.mode, (image.width // factor, image.height // factor))
        values = load(image, raw_mode, file)
        check_size(file, size, rotated, stored)
        if values is not None:
            orientation = image.getexif().get(ORIENTATION, 1)
            deep = value_range(values, image, file, pixel_range)
            warn_beyond(file, deep, pixel_range)
            pixels = to_8_bits(values, pixel_range or (0.0, deep.top))
            image = Image.fromarray(255 - pixels if is_white_zero(image) else pixels)
            image.getexif()[ORIENTATION] = orientation
        if size is None or size == rotated:
            ImageOps.exif_transpose(image, in_place=True)
        rgb = to_rgb(image)
        return forget_orientation(image.copy() if rgb is image else rgb)


def reduction(short_side: int, min_side: int) -> int:
    """Return the factor, 1, 2, 4 or 8, by which a JPEG can be reduced so that its short side is at least `min_side`."""
    return next((factor for factor in (8, 4, 2) if short_side >= factor * min_side), 1)


def examine_image(
    path: str | ImageFile, size: tuple[int, int] | None = None, *, pixel_range: PixelRange | None = None
) -> Examination:
    """Decode a whole image and return what is found in it.

    JPEGs are decoded at reduced resolution, which reads all bytes in a third of the time.

    Args:
        path: The image file.
        size: (height, width) according to the annotations; None if they do not state it.
        pixel_range: As for `read_image`.

    Raises:
        ImageError: As for `read_image`.
    """
    file = loaded(path)
    with _opened(file) as image:
        notes, deep, raw_mode = [], None, raw_mode_of(image)
        stored, rotated = _sizes(image)
        orientation = image.getexif().get(ORIENTATION, 1)
        if image.format == "JPEG":
            image.draft(image.mode, (1, 1))
        values = load(image, raw_mode, file)
        check_size(file, size, rotated, stored)
        if orientation in ROTATED and (size is None or stored == rotated):
            notes.append(("ambiguous_orientation", f"{path}: EXIF orientation {orientation}"))
        if values is not None:
            deep = value_range(values, image, file, pixel_range)
            notes += depth_notes(file, deep, pixel_range)
        notes += [
            (kind, f"{path}: {what}") for kind, what in _format_notes(image, Path(str(path)).suffix.lower())
        ]
        return Examination(notes, deep)


def depth_notes(
    path: str | Path | EncodedImage, deep: DeepValues, pixel_range: PixelRange | None
) -> Iterator[tuple[str, str]]:
    """Yield what is found in an image with these values of more than 8 bits; see `Examination.findings`."""
    yield "deep_image", str(path)
    if pixel_range is None and 0 < deep.high < NARROW * deep.top:
        yield "narrow_range", f"{path}: values from {deep.low:g} to {deep.high:g} of 0 to {deep.top:g}"
    if pixel_range is not None and (problem := deep.problem(pixel_range)):
        yield "beyond_range", f"{path}: {problem}"


def _format_notes(image: Image.Image, suffix: str) -> Iterator[tuple[str, str]]:
    expected = Image.registered_extensions().get(suffix)
    # Pillow reports JPEGs with a second embedded picture, as phones write them, as MPO.
    actual = "JPEG" if image.format == "MPO" else image.format
    if expected is not None and expected != actual:
        yield "other_format", f"is {actual}"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield "animation", f"is an animated {image.format}"


def read_size(path: str | ImageFile | EncodedImage) -> tuple[int, int]:
    """Return (height, width) of an image from its header, with its EXIF orientation applied.

    Raises:
        ImageError: The file is missing, not an image, or larger than `MAX_PIXELS`.
    """
    with _opened(loaded(path)) as image:
        _, rotated = _sizes(image)
        return rotated


@contextmanager
def _opened(path: str | Path | EncodedImage, max_pixels: int | None = None) -> Iterator[Image.Image]:
    if not isinstance(path, EncodedImage):
        require_regular(Path(path), ImageError)
    try:
        _check_ppm_header(path)
        # Of a file named to it, Pillow would map some TIFFs into memory, and mix up the pixels of those on their side.
        with open_binary(path) as file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
                image = Image.open(file, formats=FORMATS)
            with image:
                limit = MAX_PIXELS if max_pixels is None else max_pixels
                _check_pixels(path, image.height, image.width, limit)
                yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: has too many pixels ({error}); {_TOO_LARGE}", "too_large_image") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file", "missing_image") from None
    except PermissionError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise all kinds of errors
        if isinstance(error, UnidentifiedImageError) and (pixels := pixels_of_tiff(path)):
            raise ImageError(
                f"{path}: is a TIFF with {pixels}, which is not read; expected gray or RGB of 8 or 16 bits, or gray of "
                "32 bits: convert it"
            ) from None
        if isinstance(error, UnidentifiedImageError) and (other := _other_format(path)):
            raise ImageError(f"{path}: is {other}, which is not read; convert it to JPEG or PNG") from None
        is_unsupported = Path(str(path)).suffix.lower() in _UNSUPPORTED
        cure = "convert it to JPEG or PNG" if is_unsupported else "replace or remove it"
        # Pillow names the file object.
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"{path}: cannot be read as an image ({reason}); {cure}") from None


def _check_ppm_header(path: str | Path | EncodedImage) -> None:
    with open_binary(path) as file:
        start = file.read(3)
        if not (start.startswith(b"P") and start[1:2] in _PPM_KINDS):
            return
        start += file.read(MAX_PPM_HEADER - 3)
    expected = 3 if start[1:2] in b"14" else 4  # kind, width, height, and the largest value except of bitmaps
    values = _PPM_COMMENT.sub(b"", start).split(maxsplit=expected)[:expected]
    if len(start) == MAX_PPM_HEADER and len(values) < expected:
        raise ImageError(
            f"{path}: has a header of more than {MAX_PPM_HEADER:,} bytes; save it without comments"
        )


def _other_format(path: str | Path | EncodedImage) -> str | None:
    """Return Pillow's name of a format that is not among `FORMATS`, by the signature of the file; None if unknown."""
    Image.init()
    with open_binary(path) as file:
        start = file.read(16).ljust(16, b"\xff")
    known = ((name, accept) for name, (_, accept) in Image.OPEN.items() if name not in FORMATS and accept)
    return next((name for name, accept in known if accept(start) is True), None)


def _check_pixels(path: str | Path | EncodedImage, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(
            f"{path}: {height}x{width} is {height * width:,} pixels; expected at most {max_pixels:,}: "
            f"{'make it smaller' if isinstance(path, EncodedImage) else _TOO_LARGE}",
            "too_large_image",
        )


def check_size(
    path: str | Path | EncodedImage,
    size: tuple[int, int] | None,
    rotated: tuple[int, int],
    stored: tuple[int, int],
) -> None:
    """Raise ImageError if the annotations state another size, unless `size` is None; see `read_image`.

    Args:
        path: The image file, for the message.
        size: (height, width) according to the annotations.
        rotated: That of the image with its EXIF orientation.
        stored: That of the image without.
    """
    if size not in (None, rotated, stored):
        assert size is not None
        raise ImageError(
            f"{path}: is {rotated[0]}x{rotated[1]} (height x width) but its annotations say {size[0]}x{size[1]}; "
            "correct the annotations, or restore the image that was annotated",
            "other_size",
        )


def _sizes(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (height, width) of an image that is not decoded yet, without and with its EXIF orientation.

    Of TIFFs both have it: Pillow applies it itself, to their size when it opens them.
    """
    stored = (image.height, image.width)
    is_sideways = image.format != "TIFF" and _exif(image).get(ORIENTATION) in SIDEWAYS
    return stored, stored[::-1] if is_sideways else stored


def _exif(image: Image.Image) -> Image.Exif:
    """Return the EXIF data of an image that is not decoded yet.

    Of PNGs without any, Pillow decodes all pixels to see whether they follow, which takes 200 times as long.
    """
    if isinstance(image, PngImageFile) and not _has_late_exif(image):
        return Image.Image.getexif(image)
    return image.getexif()


def _has_late_exif(image: PngImageFile) -> bool:
    """Return whether a chunk behind the first pixels may have EXIF data; the chunks before them are read already."""
    file = image.fp
    assert file is not None
    before, pixels_seen = file.tell(), False
    file.seek(_PNG_SIGNATURE)
    try:
        while len(start := file.read(_PNG_CHUNK + len(_PNG_TEXTS[0]))) >= _PNG_CHUNK:
            length, kind, data = int.from_bytes(start[:4]), start[4:8], start[8:]
            pixels_seen |= kind == b"IDAT"
            if pixels_seen and (kind == b"eXIf" or data.startswith(_PNG_TEXTS)):
                return True
            file.seek(_PNG_CHUNK + length - len(start), SEEK_CUR)
        return False
    finally:
        file.seek(before)
