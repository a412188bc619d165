"""Images in memory, upright, as uint8 tensors; their padding to one size, and random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from querybox.errors import ImageError

ORIENTATION = int(ExifTags.Base.Orientation)
"""EXIF tag of the orientation of an image."""
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Keys of `Image.info` from which Pillow reads the orientation of an image."""


def as_pixels(image: object) -> UInt8[Tensor, "3 h w"]:
    """Return an RGB image as a uint8 tensor, channels first.

    The EXIF orientation of a PIL image is applied, as that of a file is. The memory format stays channels last, as
    decoded, which is the fastest for resizing.

    Args:
        image: A PIL image of 8 bits, a uint8 array ``[h, w, 3]``, or a uint8 tensor ``[3, h, w]``.

    Raises:
        ImageError: The image has another type, shape or depth, or a PIL image cannot be decoded.
    """
    if isinstance(image, Image.Image):
        kind = f"PIL image of mode {image.mode}, {image.width} x {image.height} pixels"
        usable = not image.mode.startswith(("I", "F")) and 0 not in image.size
    elif isinstance(image, np.ndarray | Tensor):
        place = f" on {image.device}" if isinstance(image, Tensor) and image.is_meta else ""
        kind = f"{type(image).__name__} of {image.dtype} {list(image.shape)}{place}"
        usable = is_rgb(image)
    else:
        kind, usable = type(image).__name__, False
    if not usable:
        raise ImageError(
            f"got a {kind} as image; expected RGB in 0-255: a PIL image of 8 bits, a uint8 array [height, width, 3] or "
            "a uint8 tensor [3, height, width]: convert it first"
        )
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(decoded(image), order="C")).permute(2, 0, 1)


def is_rgb(image: np.ndarray | Tensor) -> bool:
    """Return whether the values of an array or a tensor are those of an RGB image of 8 bits."""
    if isinstance(image, Tensor):
        dense = image.layout == torch.strided and not image.is_meta
        return (
            dense
            and image.dtype == torch.uint8
            and image.ndim == 3
            and image.shape[0] == 3
            and image.numel() > 0
        )
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def decoded(image: object) -> object:
    """Return a PIL image in RGB and upright, and any other image unchanged.

    Raises:
        ImageError: Its file is truncated, corrupt or closed.
    """
    if not isinstance(image, Image.Image):
        return image
    try:
        image.load()
        return to_rgb(upright(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises all kinds of errors, also for damaged EXIF data
        raise ImageError(f"got a PIL image of mode {image.mode} that cannot be decoded: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Return the image with its EXIF orientation applied, which it then no longer states."""
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def forget_orientation(image: Image.Image) -> Image.Image:
    """Remove the EXIF orientation, which is not to be applied any more, of an image that was just copied."""
    for key in ORIENTATION_KEYS:
        image.info.pop(key, None)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit image in RGB, without its transparency."""
    if "transparency" in image.info:  # of a palette image: resolve the palette before dropping transparency
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def pad(images: Sequence[UInt8[Tensor, "3 _ _"]]) -> tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B 2"]]:
    """Stack images, zero-padded at the right and bottom to the same size; also return their (height, width)."""
    sizes = torch.tensor([image.shape[1:] for image in images], device="cpu")  # [B, 2]
    height, width = sizes.amax(0).tolist()
    pixels = torch.empty(len(images), height, width, 3, dtype=torch.uint8, device="cpu")
    pixels = pixels.permute(0, 3, 1, 2)  # [B, 3, H, W], channels last in memory
    for padded, image in zip(pixels, images, strict=True):
        h, w = image.shape[1:]
        padded[:, :h, :w] = image
        padded[:, h:] = 0
        padded[:, :h, w:] = 0
    return pixels, sizes


def smooth_image(
    height: int, width: int, *, generator: torch.Generator
) -> UInt8[Tensor, "3 {height} {width}"]:
    """Return an image with random colours that change slowly, on which engines are compared."""
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    return (255 * F.interpolate(coarse, size=(height, width), mode="bilinear")[0]).byte()
