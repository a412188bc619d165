"""Mosaic and mixup: one training image is made of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from querybox.data.transforms import Sample, mask_boxes, resize_masks, resize_to
from querybox.data.windows import Fill, blank, clipped
from querybox.pixels import as_pixels

MAX_ROTATION = 10.0
"""Maximum rotation of a mosaic in degrees, as in DEIM."""
MAX_TRANSLATION = 0.1
"""Maximum translation of a mosaic, relative to its sides."""
SCALES = 0.5, 1.5
"""Range of the factor by which a mosaic is scaled."""


def mosaic(
    samples: Sequence[Sample], shape: tuple[int, int], rng: np.random.Generator, *, stretch: bool, fill: Fill
) -> Sample:
    """Return a mosaic of up to four images, randomly rotated, scaled and translated.

    Args:
        samples: The images: top left, top right, bottom left, bottom right.
        shape: (height, width) of the mosaic, at least 2.
        rng: Source of all random numbers.
        stretch: Whether the images are stretched to half of `shape`, instead of keeping their aspect ratio.
        fill: RGB value of pixels without an image.
    """
    tiled = tile(samples, shape, stretch=stretch, fill=fill)
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    scale = rng.uniform(*SCALES)
    translation = rng.uniform(-MAX_TRANSLATION, MAX_TRANSLATION, 2) * shape[::-1]
    return warp(tiled, angle, scale, translation, fill)


def tile(samples: Sequence[Sample], shape: tuple[int, int], *, stretch: bool, fill: Fill) -> Sample:
    """Return up to four images side by side, each at the top left of its quarter; see `mosaic`."""
    half_height, half_width = shape[0] // 2, shape[1] // 2
    canvas = blank(shape, fill)
    boxes, masks = [], []
    for number, sample in enumerate(samples):
        top, left = number // 2 * half_height, number % 2 * half_width
        height, width = sample.pixels.shape[-2:]
        h, w = half_height, half_width
        if not stretch:
            ratio = min(h / height, w / width)
            h, w = max(1, round(height * ratio)), max(1, round(width * ratio))
        canvas[:, top : top + h, left : left + w] = resize_to(sample.pixels, (h, w))
        ratios = torch.tensor([w / width, h / height] * 2)
        boxes.append(sample.boxes_xyxy * ratios + torch.tensor([left, top] * 2))
        masks.append(
            None if sample.masks is None else placed(resize_masks(sample.masks, (h, w)), (top, left), shape)
        )
    return Sample(
        canvas, torch.cat(boxes), torch.cat([sample.labels for sample in samples]), joined_masks(masks)
    )


def placed(
    masks: Bool[Tensor, "G h w"], corner: tuple[int, int], shape: tuple[int, int]
) -> Bool[Tensor, "G H W"]:
    """Return masks of an image that is a part of a larger one of this `shape`, from the (top, left) `corner`."""
    top, left = corner
    height, width = masks.shape[1:]
    canvas = torch.zeros(len(masks), *shape, dtype=torch.bool)
    canvas[:, top : top + height, left : left + width] = masks
    return canvas


def joined_masks(masks: Sequence[Bool[Tensor, "_ H W"] | None]) -> Bool[Tensor, "G H W"] | None:
    """Return the masks of the objects of several images; None if those of one are not known."""
    known = [one for one in masks if one is not None]
    return torch.cat(known) if len(known) == len(masks) else None


def warp(
    sample: Sample, angle: float, scale: float, translation: Float[np.ndarray, " 2"], fill: Fill
) -> Sample:
    """Rotate and scale an image about its centre, and translate it.

    A box becomes the smallest box around its rotated corners, or around its rotated mask if there is one, is clipped to
    the image, and is dropped if a side is then below `windows.MIN_OBJECT` pixels.

    Args:
        sample: The image and its objects.
        angle: Rotation in degrees, clockwise.
        scale: The factor.
        translation: To the right and down, in pixels.
        fill: RGB value of pixels without an image.
    """
    height, width = sample.pixels.shape[-2:]
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = scale * np.array([[cos, -sin], [sin, cos]])
    center = np.array([width, height]) / 2
    offset = center + translation - matrix @ center

    inverse = np.linalg.inv(matrix)
    rows = np.column_stack([inverse, -inverse @ offset])
    warped = Image.fromarray(sample.pixels.permute(1, 2, 0).numpy()).transform(
        (width, height),
        Image.Transform.AFFINE,
        tuple(rows.ravel().tolist()),
        Image.Resampling.BILINEAR,
        fillcolor=tuple(round(value) for value in fill),
    )
    corners = sample.boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).double()
    corners = corners @ torch.from_numpy(matrix).T + torch.from_numpy(offset)  # [G, 4, 2]
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1).float()
    masks = None if sample.masks is None else warp_masks(sample.masks, inverse, offset)
    return clipped(
        Sample(as_pixels(warped), boxes if masks is None else mask_boxes(masks), sample.labels, masks)
    )


def warp_masks(
    masks: Bool[Tensor, "G H W"], inverse: Float[np.ndarray, "2 2"], offset: Float[np.ndarray, " 2"]
) -> Bool[Tensor, "G H W"]:
    """Return masks of which pixel p shows the one that is nearest to `inverse` (p - `offset`)."""
    height, width = masks.shape[1:]
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) + 0.5 - offset  # [H, W, 2]
    x, y = np.moveaxis(np.floor(pixels @ inverse.T).astype(np.int64), -1, 0)
    inside = torch.from_numpy((x >= 0) & (x < width) & (y >= 0) & (y < height))
    index = torch.from_numpy(y.clip(0, height - 1) * width + x.clip(0, width - 1))
    return masks.flatten(1)[:, index] & inside


def mixup(samples: Sequence[Sample], weight: float) -> list[Sample]:
    """Mix every image of a batch with the one before it, the first with the last; each has the objects of both.

    Images of different sizes are aligned at the top left, on black.

    Args:
        samples: The images of a batch.
        weight: Weight of each image, 0-1; that of the other one is 1 - `weight`.
    """
    return [mix(sample, samples[number - 1], weight) for number, sample in enumerate(samples)]


def mix(first: Sample, second: Sample, weight: float) -> Sample:
    """Return the weighted mean of two images, with the objects of both."""
    height, width = np.maximum(first.pixels.shape[-2:], second.pixels.shape[-2:]).tolist()
    mixed: Tensor = torch.zeros(height, width, 3).permute(2, 0, 1)  # channels last in memory
    for sample, share in ((first, weight), (second, 1 - weight)):
        h, w = sample.pixels.shape[-2:]
        mixed[:, :h, :w] += share * sample.pixels
    return Sample(
        mixed.round_().to(torch.uint8),
        torch.cat([first.boxes_xyxy, second.boxes_xyxy]),
        torch.cat([first.labels, second.labels]),
        joined_masks(
            [
                None if sample.masks is None else placed(sample.masks, (0, 0), (height, width))
                for sample in (first, second)
            ]
        ),
    )
