"""Stage 0: resizing, flips and crops of images and their boxes.

Pixels stay uint8 until they are normalised on the device. All random numbers are drawn from the generator that is
passed in.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

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
    masks: Bool[Tensor, "G H W"] | None = None
    """Pixels of each object; None if they are not known or not needed."""

    def objects(self, index: Bool[Tensor, " G"] | Int[Tensor, " K"]) -> Self:
        """Return the image with some of its objects."""
        return self._replace(
            boxes_xyxy=self.boxes_xyxy[index],
            labels=self.labels[index],
            masks=None if self.masks is None else self.masks[index],
        )


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
    if pixels.shape[1:] == shape:
        return pixels
    # Channels-last, the fastest memory format for resizing; a single image does not always get it by `contiguous`.
    batch = pixels.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    if not pixels.is_cpu:  # where integers cannot be resized
        batch = batch.float()
    resized = F.interpolate(batch, shape, mode="bilinear", antialias=antialias)[0]
    return resized.round().to(torch.uint8) if resized.is_floating_point() else resized


def flip(sample: Sample, settings: DataSettings, rng: np.random.Generator) -> Sample:
    """Flip an image horizontally and vertically, each with its probability."""
    for probability, axis in (settings.horizontal_flip, 0), (settings.vertical_flip, 1):
        if rng.random() < probability:
            size = sample.pixels.shape[-1 - axis]
            boxes = sample.boxes_xyxy.clone()
            boxes[:, [axis, axis + 2]] = size - boxes[:, [axis + 2, axis]]
            masks = None if sample.masks is None else sample.masks.flip(-1 - axis)
            sample = Sample(sample.pixels.flip(-1 - axis), boxes, sample.labels, masks)
    return sample


def resize_sample(sample: Sample, shape: tuple[int, int]) -> Sample:
    """Resize an image, its boxes and its masks to this (height, width)."""
    pixels = resize_to(sample.pixels, shape)
    height, width = (new / old for new, old in zip(pixels.shape[1:], sample.pixels.shape[1:], strict=True))
    return sample._replace(
        pixels=pixels,
        boxes_xyxy=sample.boxes_xyxy * torch.tensor([width, height, width, height]),
        masks=None if sample.masks is None else resize_masks(sample.masks, shape),
    )


def resize_masks(masks: Bool[Tensor, "G h w"], shape: tuple[int, int]) -> Bool[Tensor, "G H W"]:
    """Resize masks to this (height, width), by the nearest pixel."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(shape, masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]


def crop(sample: Sample, sizes: Sizes, rng: np.random.Generator) -> Sample:
    """Resize an image to one of `crop_scales` and crop it to a random size and position, as DETR does.

    Boxes are clipped to the crop, and those outside it are dropped; see `clip`.
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
    masks = None if sample.masks is None else sample.masks[:, top : top + h, left : left + w]
    sample = clip(Sample(sample.pixels[:, top : top + h, left : left + w], boxes, sample.labels, masks))
    return sample.objects((sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all(1))


def clip(sample: Sample) -> Sample:
    """Clip the boxes of `sample` to its image; a box that is cut becomes that of the visible part of its mask."""
    height, width = sample.pixels.shape[-2:]
    boxes = sample.boxes_xyxy.clamp(min=0).minimum(torch.tensor([width, height] * 2))
    if sample.masks is not None:
        cut = (boxes != sample.boxes_xyxy).any(1)
        boxes[cut] = mask_boxes(sample.masks[cut])
    return sample._replace(boxes_xyxy=boxes)


def mask_boxes(masks: Bool[Tensor, "G H W"]) -> Float[Tensor, "G 4"]:
    """Return the corners of the smallest box around each mask, in pixels; zeros for an empty mask."""
    first, last = [], []
    for dim in (1, 2):  # over the rows for x, over the columns for y
        occupied = masks.any(dim).byte()  # argmax is the first place
        first.append(occupied.argmax(1))
        last.append((occupied.shape[1] - occupied.flip(1).argmax(1)) * occupied.amax(1))
    return torch.stack([*first, *last], 1).float()
