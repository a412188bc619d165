"""Reading an image file as 8-bit RGB, the way round that a person sees it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from querybox.errors import ImageError

MAX_PIXELS = 89_478_485
"""The most pixels an image may have: 256 MiB of RGB. Larger ones are refused from their header."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings (lower case) that are taken for images where a folder is searched."""

ORIENTATION = 0x0112  # EXIF tag
TURNED = frozenset(range(2, 9))
"""Orientations that turn or mirror an image."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Of these, those that change its height and width for each other."""


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read one image as 8-bit RGB.

    Any mode becomes RGB: grayscale is repeated, palettes are looked up, transparency is dropped, CMYK is
    converted, 16-bit values are divided by 257. The EXIF orientation is applied. Of an animation the first
    frame is read.

    Args:
        path: The image file; its content counts, not its name.
        size: (height, width) that the image's annotations state. Where only the stored pixels have it, not the
            turned ones, the annotations were drawn on the stored pixels, so the image is left unturned.

    Raises:
        ImageError: The file is missing, no image, broken, over `MAX_PIXELS`, or of another size than `size`.
    """
    with _opened(path) as image:
        image.load()
        turned = _turned_size(image)
        _check_size(path, size, turned, (image.height, image.width))
        if size is None or size == turned:
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, path)


def examine_image(path: str | Path, size: tuple[int, int] | None = None) -> list[tuple[str, str]]:
    """Decode all of an image, and say what is worth knowing of it.

    Of a JPEG all bytes are decoded, but not all pixels computed, in a third of the time.

    Args:
        path: The image file.
        size: (height, width) that the image's annotations state; None = they state none.

    Returns:
        Kinds of `querybox.data.findings.KINDS`, each with what was seen.

    Raises:
        ImageError: As `read_image`.
    """
    with _opened(path) as image:
        notes = []
        orientation = image.getexif().get(ORIENTATION, 1)
        stored, turned = (image.height, image.width), _turned_size(image)
        if image.format == "JPEG":
            image.draft(image.mode, (1, 1))
        image.load()
        if image.format == "TIFF":  # Pillow has turned it by itself, as it was loaded
            stored = turned = (image.height, image.width)
        _check_size(path, size, turned, stored)
        if orientation in TURNED and (size is None or stored == turned):
            notes.append(("ambiguous_orientation", f"{path}: EXIF orientation {orientation}"))
        if image.mode == "F" or image.mode.startswith("I"):
            _to_rgb(image, path)
            notes.append(("deep_image", str(path)))
        notes += [(kind, f"{path}: {what}") for kind, what in _oddities(image, Path(path).suffix.lower())]
        return notes


def _oddities(image: Image.Image, suffix: str) -> Iterator[tuple[str, str]]:
    named = Image.registered_extensions().get(suffix)
    # A telephone's JPEG with a second picture in it is an MPO to Pillow.
    actual = "JPEG" if image.format == "MPO" else image.format
    if named is not None and named != actual:
        yield "other_format", f"is {actual}"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield "animation", f"is an animated {image.format}"


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of an image from its header, its EXIF orientation applied.

    Raises:
        ImageError: The file is missing, no image, or over `MAX_PIXELS`.
    """
    with _opened(path) as image:
        # Pillow turns a TIFF by itself, and says so of its size before it is loaded.
        return (image.height, image.width) if image.format == "TIFF" else _turned_size(image)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in `folder` and the folders below it, sorted, recognised by their names."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # those are refused here
            image = Image.open(path)
        with image:
            _check_pixels(path, image.height, image.width)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: has too many pixels ({error}); make it smaller", "too_large_image"
        ) from None
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file", "missing_image") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly anything on broken bytes
        raise ImageError(f"{path}: cannot be read as an image ({error}); replace or remove it") from None


def _check_pixels(path: str | Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{path}: {height}x{width} is {height * width:,} pixels, the most is {MAX_PIXELS:,}; "
            "make it smaller or cut it into tiles",
            "too_large_image",
        )


def _check_size(
    path: str | Path, size: tuple[int, int] | None, turned: tuple[int, int], stored: tuple[int, int]
) -> None:
    if size not in (None, turned, stored):
        assert size is not None
        raise ImageError(
            f"{path}: is {turned[0]}x{turned[1]} (height x width) but its annotations say {size[0]}x{size[1]}; "
            "correct the size there, or put back the image that was annotated",
            "other_size",
        )


def _turned_size(image: Image.Image) -> tuple[int, int]:
    sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "F":
        raise ImageError(
            f"{path}: has float pixels, whose range is not known; save it with 8 or 16 bits", "unknown_range"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{path}: has 32-bit pixels, whose range is not known; save it with 8 or 16 bits",
                "unknown_range",
            )
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))  # 65535 / 257 = 255
    if "transparency" in image.info:  # of a palette; Pillow wants it looked up before it is dropped
        image = image.convert("RGBA")
    return image.convert("RGB")
