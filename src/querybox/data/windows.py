"""Zoom-out and IoU crops: an image is seen through a window that is larger or smaller than the image.

Both only choose a window. The image is then resized once, to the size at which it is shown, however large the canvas
of a zoom-out would be.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from querybox.data.transforms import Sample, clip, resize_masks, resize_to

MAX_ZOOM_OUT = 4.0
"""Maximum ratio of the sides of the canvas to those of the image."""
MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
"""Minimum IoU of a crop with one of the objects, of which one is chosen; None for no crop."""
MIN_CROP = 0.3
"""Minimum ratio of the sides of a crop to those of the image."""
MAX_CROP_ASPECT = 2.0
CROP_TRIALS = 40
"""Number of crops that are tried with the chosen minimum IoU, before another one is chosen."""
MIN_OBJECT = 1.0
"""Side in pixels below which an object is dropped."""

Fill = tuple[float, float, float]
"""RGB value in 0-255 of pixels without an image."""


class Window(NamedTuple):
    """A rectangle in pixels of an image, which it may exceed."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def of(cls, pixels: UInt8[Tensor, "3 H W"]) -> Self:
        """Return the window that shows exactly the whole image."""
        height, width = pixels.shape[-2:]
        return cls(0, 0, width, height)


def zoom_out(window: Window, rng: np.random.Generator) -> Window:
    """Return a window around another one, at most `MAX_ZOOM_OUT` times as wide and high, as in SSD."""
    ratio = rng.uniform(1, MAX_ZOOM_OUT)
    width, height = int(window.width * ratio), int(window.height * ratio)
    x, y = rng.random(2)
    return Window(
        window.left - int((width - window.width) * x),
        window.top - int((height - window.height) * y),
        width,
        height,
    )


def iou_crop(window: Window, boxes_xyxy: Float[Tensor, "G 4"], rng: np.random.Generator) -> Window:
    """Return a window within another one that has at least a minimum IoU with one of the objects, as in SSD.

    The minimum is one of `MIN_IOUS`, and the sides are 0.3 to 1 of those of `window`, with an aspect ratio of 1:2 to
    2:1. The window has the centre of at least one object; without objects it stays the same.

    Args:
        window: The window to crop.
        boxes_xyxy: The objects, in pixels of the image.
        rng: Source of all random numbers.
    """
    boxes = boxes_xyxy.double().numpy()
    while len(boxes):
        min_iou = MIN_IOUS[rng.integers(len(MIN_IOUS))]
        if min_iou is None:
            break
        crops = random_crops(window, rng)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])).all(2)  # [N, G]
        best = np.where(inside, pairwise_iou(crops, boxes), -1).max(1, initial=-1)
        fitting = crops[best >= min_iou]
        if len(fitting):
            x0, y0, x1, y1 = (int(side) for side in fitting[0])
            return Window(x0, y0, x1 - x0, y1 - y0)
    return window


def random_crops(window: Window, rng: np.random.Generator) -> Float[np.ndarray, "N 4"]:
    """Return `CROP_TRIALS` random crops of a window, less those that are too small or too oblong, as corners."""
    scale_x, scale_y, x, y = rng.random((4, CROP_TRIALS))
    width = ((MIN_CROP + (1 - MIN_CROP) * scale_x) * window.width).astype(np.int64)
    height = ((MIN_CROP + (1 - MIN_CROP) * scale_y) * window.height).astype(np.int64)
    left = window.left + ((window.width - width) * x).astype(np.int64)
    top = window.top + ((window.height - height) * y).astype(np.int64)
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    usable = (shorter > 0) & (longer <= MAX_CROP_ASPECT * shorter)
    return np.stack([left, top, left + width, top + height], 1)[usable].astype(np.float64)


def pairwise_iou(
    first: Float[np.ndarray, "N 4"], second: Float[np.ndarray, "G 4"]
) -> Float[np.ndarray, "N G"]:
    """Return the IoU of all pairs of boxes, which are corners; at least those of `first` have an area."""
    corner = np.maximum(first[:, None, :2], second[:, :2])
    intersection = (np.minimum(first[:, None, 2:], second[:, 2:]) - corner).clip(min=0).prod(2)
    area, other = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second))
    return intersection / (area[:, None] + other - intersection)


def show(sample: Sample, window: Window, shape: tuple[int, int], fill: Fill) -> Sample:
    """Return what a window shows of an image, resized.

    Objects are kept if their centre is in the window, clipped to it, and dropped if a side is then below
    `MIN_OBJECT` pixels.

    Args:
        sample: The image and its objects.
        window: The window, which shows a part of the image.
        shape: (height, width) of the result.
        fill: Value of pixels outside the image.
    """
    height, width = shape
    scale = np.array([width / window.width, height / window.height])
    corner = np.array([window.left, window.top])
    image_height, image_width = sample.pixels.shape[-2:]
    # The part of the image that is visible, and where it is shown.
    seen = np.array([[0, 0], [image_width, image_height]]).clip(
        corner, corner + np.array([window.width, window.height])
    )
    shown = np.rint((seen - corner) * scale).astype(np.int64)
    shown[0] = np.minimum(shown[0], [width - 1, height - 1])
    shown[1] = np.maximum(shown[1], shown[0] + 1)
    (x0, y0), (x1, y1) = seen.tolist()
    (left, top), (right, bottom) = shown.tolist()
    pixels = resize_to(sample.pixels[:, y0:y1, x0:x1], (bottom - top, right - left))
    masks = sample.masks
    if masks is not None:
        visible = resize_masks(masks[:, y0:y1, x0:x1], (bottom - top, right - left))
        masks = torch.zeros(len(masks), *shape, dtype=torch.bool)
        masks[:, top:bottom, left:right] = visible
    if pixels.shape[-2:] != shape:
        canvas = blank(shape, fill)
        canvas[:, top:bottom, left:right] = pixels
        pixels = canvas

    boxes = (sample.boxes_xyxy - torch.from_numpy(corner).repeat(2)) * torch.from_numpy(scale).repeat(2)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((center > 0) & (center < torch.tensor([width, height]))).all(1)
    return clipped(Sample(pixels, boxes.float(), sample.labels, masks).objects(inside))


def clipped(sample: Sample) -> Sample:
    """Clip the boxes of `sample` to its image, and drop those with a side below `MIN_OBJECT` pixels; see `clip`."""
    sample = clip(sample)
    return sample.objects((sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2] >= MIN_OBJECT).all(1))


def blank(shape: tuple[int, int], fill: Fill) -> UInt8[Tensor, "3 H W"]:
    """Return an image of one colour, channels last in memory."""
    color = torch.tensor([round(value) for value in fill], dtype=torch.uint8)
    return color.repeat(*shape, 1).permute(2, 0, 1)
