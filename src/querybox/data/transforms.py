"""Stage 0: how images are resized, and varied in training, with their boxes.

Pixels stay uint8 until they are normalised on the device. Every random choice comes from the generator that is
passed in, so the same generator gives the same image.
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

# Before a crop only the short side is set, so a panorama of 1 x 10,000 pixels would become gigabytes. The
# original pipeline bounds the long side, too: 4200 pixels for its largest short side there, 600.
_LONGEST_BEFORE_CROP = 7


class Sample(NamedTuple):
    """One image with its objects."""

    pixels: UInt8[Tensor, "3 H W"]
    boxes_xyxy: Float[Tensor, "G 4"]
    """Pixels of this image."""
    labels: Int[Tensor, " G"]


def resized_shape(
    height: int, width: int, short_side: int, long_side: int, resizing: Resizing = "querybox"
) -> tuple[int, int]:
    """Return the (height, width) to which an image is resized.

    The short side becomes `short_side`, or less where the long side would exceed `long_side`. MMDetection rounds both
    sides (mmcv's imrescale). The others truncate the long side, and round the short side where `long_side` sets it;
    there facebookresearch's long side may be one pixel more or less than `long_side`, Hugging Face's is computed before
    the short side is rounded, and ours is facebookresearch's but never more.
    """
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
    """Resize an image to `resized_shape`: all that evaluation and prediction do.

    With antialiasing, as Pillow does it, except for MMDetection, whose OpenCV does without.
    """
    shape = resized_shape(pixels.shape[-2], pixels.shape[-1], short_side, long_side, resizing)
    batch = pixels[None].contiguous(memory_format=torch.channels_last)  # the order that is resized fastest
    resized: Tensor = F.resize(batch, list(shape), antialias=resizing != "mmdet")
    return resized[0]


def augment(sample: Sample, settings: DataSettings, rng: np.random.Generator) -> Sample:
    """Vary one training image as stage 0 says.

    Flip; then resize the short side to one of `scales`, or, evenly chosen, resize it to one of `crop_scales`, cut
    out a window of random size and place, and resize that. Boxes are cut to the window; those that lie outside
    are dropped, any that show in part are kept, and a window without objects is a negative.

    Args:
        sample: The image and its objects.
        settings: Sizes and probabilities.
        rng: Where all chance comes from.
    """
    sizes = settings.sizes()
    sample = _flip(sample, settings, rng)
    if rng.random() < settings.crop:
        short_side = int(rng.choice(sizes.crop_scales))
        sample = _resize(sample, short_side, _LONGEST_BEFORE_CROP * short_side)
        sample = _crop(sample, sizes, rng)
    sample = _resize(sample, int(rng.choice(sizes.scales)), sizes.long_side)
    if settings.color_jitter:
        sample = sample._replace(pixels=_jitter(sample.pixels, settings.color_jitter, rng))
    return sample


def _flip(sample: Sample, settings: DataSettings, rng: np.random.Generator) -> Sample:
    for probability, axis in (settings.horizontal_flip, 0), (settings.vertical_flip, 1):
        if rng.random() < probability:
            size = sample.pixels.shape[-1 - axis]
            boxes = sample.boxes_xyxy.clone()
            boxes[:, [axis, axis + 2]] = size - boxes[:, [axis + 2, axis]]
            sample = Sample(sample.pixels.flip(-1 - axis), boxes, sample.labels)
    return sample


def _resize(sample: Sample, short_side: int, long_side: int) -> Sample:
    pixels = resize(sample.pixels, short_side, long_side)
    height, width = (new / old for new, old in zip(pixels.shape[1:], sample.pixels.shape[1:], strict=True))
    return sample._replace(
        pixels=pixels, boxes_xyxy=sample.boxes_xyxy * torch.tensor([width, height, width, height])
    )


def _crop(sample: Sample, sizes: Sizes, rng: np.random.Generator) -> Sample:
    height, width = sample.pixels.shape[-2:]
    least, most = sizes.crop_range
    h = int(rng.integers(min(least, height), min(most, height), endpoint=True))
    w = int(rng.integers(min(least, width), min(most, width), endpoint=True))
    top = int(rng.integers(height - h, endpoint=True))
    left = int(rng.integers(width - w, endpoint=True))
    boxes = sample.boxes_xyxy - torch.tensor([left, top, left, top])
    boxes = boxes.clamp(min=0).minimum(torch.tensor([w, h, w, h]))  # cut to the window
    shows = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Sample(sample.pixels[:, top : top + h, left : left + w], boxes[shows], sample.labels[shows])


def _jitter(
    pixels: UInt8[Tensor, "3 H W"], strength: float, rng: np.random.Generator
) -> UInt8[Tensor, "3 H W"]:
    for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        pixels = adjust(pixels, float(rng.uniform(1 - strength, 1 + strength)))
    return pixels
