"""Masks of detections: logits of a map with stride 4, enlarged to the original image and cut to the boxes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from querybox.mask_embeddings import MASK_STRIDE
from querybox.masks import Rle


def detection_masks(
    logits: Float[Tensor, "N h w"],
    boxes_xyxy: Float[Tensor, "N 4"],
    size: tuple[int, int],
    resized: tuple[int, int],
) -> tuple[Rle, ...]:
    """Return the mask of each detection: the pixels of its box whose interpolated logit is positive.

    Args:
        logits: Mask logits of each detection, on the CPU.
        boxes_xyxy: Boxes in pixels of the original image.
        size: (height, width) of the original image in pixels.
        resized: (height, width) that the image was resized to.
    """
    return tuple(
        box_mask(each, box, size, resized) for each, box in zip(logits, boxes_xyxy.tolist(), strict=True)
    )


def box_mask(
    logits: Float[Tensor, "h w"], box_xyxy: list[float], size: tuple[int, int], resized: tuple[int, int]
) -> Rle:
    """Return the mask of one detection; see `detection_masks`."""
    axes = []
    for axis in (0, 1):
        low, high = box_xyxy[1 - axis], box_xyxy[3 - axis]
        start, stop = max(0, math.floor(low)), min(size[axis], math.ceil(high))
        axes.append((start, max(start, stop), size[axis], resized[axis]))
    for axis, (start, stop, full, short) in enumerate(axes):
        places = (torch.arange(start, stop) + 0.5) * (short / full / MASK_STRIDE) - 0.5
        logits = interpolate(logits, places, axis)
    return Rle.of_part((logits > 0).numpy(), (axes[0][0], axes[1][0]), size)


def interpolate(x: Float[Tensor, "h w"], places: Float[Tensor, " P"], axis: int) -> Float[Tensor, "_ _"]:
    """Interpolate linearly along an axis; beyond its ends, the first and the last value go on."""
    last = x.shape[axis] - 1
    places = places.clamp(0, last)
    below = places.long()
    weight = (places - below).to(x).unsqueeze(1 - axis)
    return torch.lerp(x.index_select(axis, below), x.index_select(axis, (below + 1).clamp(max=last)), weight)
