"""Stage 0: resizing, flips and crops of images and their boxes.

Pixels stay uint8 until they are normalised on the device. All random numbers are drawn from the generator that is
passed in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from querybox.data.settings import DataSettings, Sizes
from querybox.structures import Resizing

# Before a crop only the short side is given, and a panorama of 1 x 10,000 pixels would become gigabytes. The original
# pipeline bounds the long side, too: to 4200 pixels for its largest short side, 600.
_MAX_ASPECT_BEFORE_CROP = 7


class Sample(NamedTuple):
    """One image with its objects."""

    pixels: UInt8[Tensor, "3 H W"]
    boxes_xyxy: Float[Tensor, "G 4"]
    """Corners in pixels of this image."""
    labels: Int[Tensor, " G"]


def resized_shape(
    height: int, width: int, short_side: int, long_side: int, resizing: Resizing = "querybox"
) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to.

    The short side becomes `short_side`, or less if the long side would exceed `long_side`. MMDetection rounds both
    sides (mmcv's imrescale). The others truncate the long side and, if `long_side` is the limit, round the short side.
    In that case facebookresearch's long side may differ from `long_side` by one pixel, Hugging Face computes it before
    rounding the short side, and ours is facebookresearch's, limited to `long_side`. "stretch" ignores the aspect ratio.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        short_side: Target length of the short side in pixels.
        long_side: Maximum length of the long side in pixels.
        resizing: The library whose rounding is used; or "stretch", for a height of `short_side` and a width of
            `long_side`.
    """
    if resizing == "stretch":
        return short_side, long_side
    short, long = min(height, width), max(height, width)
    if resizing == "mmdet":
        scale = min(long_side / long, short_side / short)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    exact: float = short_side
    if short_side * long > long_side * short:
        exact = long_side * short / long
        short_side = max(1, round(exact))
    longer = int(exact * long / short) if resizing == "huggingface" else short_side * long // short
    if resizing == "querybox":
        longer = min(long_side, longer)
    return (short_side, longer) if height <= width else (longer, short_side)


def resize(
    pixels: UInt8[Tensor, "3 h w"], short_side: int, long_side: int, resizing: Resizing = "querybox"
) -> UInt8[Tensor, "3 H W"]:
    """Resize an image to `resized_shape`, as evaluation and prediction do.

    Resizing is bilinear with antialiasing like Pillow's, except for MMDetection, whose OpenCV does not antialias.
    """
    shape = resized_shape(pixels.shape[-2], pixels.shape[-1], short_side, long_side, resizing)
    return resize_to(pixels, shape, antialias=resizing != "mmdet")


def resize_to(
    pixels: UInt8[Tensor, "3 h w"], shape: tuple[int, int], *, antialias: bool = True
) -> UInt8[Tensor, "3 H W"]:
    """Resize an image to this (height, width), bilinearly."""
    batch = pixels[None].contiguous(memory_format=torch.channels_last)  # fastest memory format for resizing
    resized: Tensor = F.resize(batch, list(shape), antialias=antialias)
    return resized[0]


def flip(sample: Sample, settings: DataSettings, rng: np.random.Generator) -> Sample:
    """Flip an image horizontally and vertically, each with its probability."""
    for probability, axis in (settings.horizontal_flip, 0), (settings.vertical_flip, 1):
        if rng.random() < probability:
            size = sample.pixels.shape[-1 - axis]
            boxes = sample.boxes_xyxy.clone()
            boxes[:, [axis, axis + 2]] = size - boxes[:, [axis + 2, axis]]
            sample = Sample(sample.pixels.flip(-1 - axis), boxes, sample.labels)
    return sample


def resize_sample(sample: Sample, shape: tuple[int, int]) -> Sample:
    """Resize an image and its boxes to this (height, width)."""
    pixels = resize_to(sample.pixels, shape)
    height, width = (new / old for new, old in zip(pixels.shape[1:], sample.pixels.shape[1:], strict=True))
    return sample._replace(
        pixels=pixels, boxes_xyxy=sample.boxes_xyxy * torch.tensor([width, height, width, height])
    )


def crop(sample: Sample, sizes: Sizes, rng: np.random.Generator) -> Sample:
    """Resize an image to one of `crop_scales` and crop it to a random size and position, as DETR does.

    Boxes are clipped to the crop, and those outside it are dropped.
    """
    short_side = int(rng.choice(sizes.crop_scales))
    height, width = sample.pixels.shape[-2:]
    shape = resized_shape(height, width, short_side, _MAX_ASPECT_BEFORE_CROP * short_side)
    sample = resize_sample(sample, shape)
    height, width = shape
    low, high = sizes.crop_range
    h = int(rng.integers(min(low, height), min(high, height), endpoint=True))
    w = int(rng.integers(min(low, width), min(high, width), endpoint=True))
    top = int(rng.integers(height - h, endpoint=True))
    left = int(rng.integers(width - w, endpoint=True))
    boxes = sample.boxes_xyxy - torch.tensor([left, top, left, top])
    boxes = boxes.clamp(min=0).minimum(torch.tensor([w, h, w, h]))  # clip to the crop
    visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Sample(sample.pixels[:, top : top + h, left : left + w], boxes[visible], sample.labels[visible])
