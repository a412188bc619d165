"""Reading an image file as 8-bit RGB, the way round that a person sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from querybox.errors import ImageError

MAX_PIXELS = 89_478_485
"""The most pixels an image may have: 256 MiB of RGB. Larger ones are refused from their header."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings (lower case) that are taken for images where a folder is searched."""

ORIENTATION = 0x0112  # EXIF tag
TURNED_SIDEWAYS = frozenset({5, 6, 7, 8})


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
    try:
        with Image.open(path) as image:
            _check(path, image)
            turned = _turned_size(image)
            turn = size is None or size == turned
            if not turn and size != (image.height, image.width):
                raise ImageError(
                    f"{path}: is {turned[0]}x{turned[1]} (height x width) but its annotations say "
                    f"{size[0]}x{size[1]}; annotate this file or correct the size"
                )
            rgb = _to_rgb(image, path)
            return ImageOps.exif_transpose(rgb) if turn else rgb
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly anything on broken bytes
        raise ImageError(f"{path}: cannot be read as an image ({error}); replace or remove it") from None


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of an image from its header, its EXIF orientation applied.

    Raises:
        ImageError: The file is missing, no image, or over `MAX_PIXELS`.
    """
    try:
        with Image.open(path) as image:
            _check(path, image)
            return _turned_size(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise ImageError(f"{path}: cannot be read as an image ({error}); replace or remove it") from None


def _check(path: str | Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{path}: {image.width}x{image.height} is {image.width * image.height:,} pixels, the most is "
            f"{MAX_PIXELS:,}; make it smaller or cut it into tiles"
        )


def _turned_size(image: Image.Image) -> tuple[int, int]:
    if image.getexif().get(ORIENTATION) in TURNED_SIDEWAYS:
        return image.width, image.height
    return image.height, image.width


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{path}: has float pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(
                f"{path}: has 32-bit pixels, whose range is not known; save it with 8 or 16 bits"
            )
        gray = Image.fromarray(np.round(values / 257).astype(np.uint8))  # 65535 / 257 = 255
        gray.info = image.info  # keeps the EXIF orientation
        return gray.convert("RGB")
    if "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
