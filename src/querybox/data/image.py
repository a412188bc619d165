"""Reading an image file as 8-bit RGB, the way round that a person sees it."""

from __future__ import annotations

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
SIDEWAYS = frozenset({5, 6, 7, 8})


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
        if size is None or size == turned:
            ImageOps.exif_transpose(image, in_place=True)
        elif size != (image.height, image.width):
            raise ImageError(
                f"{path}: is {turned[0]}x{turned[1]} (height x width) but its annotations say {size[0]}x{size[1]}; "
                "correct the size there, or put back the image that was annotated"
            )
        return _to_rgb(image, path)


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
        with Image.open(path) as image:
            _check_pixels(path, image.height, image.width)
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly anything on broken bytes
        raise ImageError(f"{path}: cannot be read as an image ({error}); replace or remove it") from None


def _check_pixels(path: str | Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{path}: {height}x{width} is {height * width:,} pixels, the most is {MAX_PIXELS:,}; "
            "make it smaller or cut it into tiles"
        )


def _turned_size(image: Image.Image) -> tuple[int, int]:
    sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{path}: has float pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{path}: has 32-bit pixels, whose range is not known; save it with 8 or 16 bits"
            )
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))  # 65535 / 257 = 255
    if "transparency" in image.info:  # of a palette; Pillow wants it looked up before it is dropped
        image = image.convert("RGBA")
    return image.convert("RGB")
