"""Boundary quality of masks: Boundary IoU and Boundary AP (Cheng et al. 2021, "Boundary IoU", arXiv:2103.16562).

The IoU of large masks is that of their interior, whatever their outline is like. Boundary IoU is the IoU of the bands
of pixels along the outline, inside the masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import minimum_filter

from querybox.evaluation.average_precision import Pairs
from querybox.masks import Region, Rle, rasterised

BAND = 0.02
"""Width of the band as a fraction of the diagonal of the image."""
CACHED = 100
"""Number of objects whose bands are kept; it bounds the memory."""


class Band(NamedTuple):
    """The pixels of a mask along its outline."""

    left: int
    top: int
    pixels: Bool[np.ndarray, "h w"]
    """The pixels within the box of the mask, whose upper left corner is (`left`, `top`)."""


def band(mask: Rle) -> Band:
    """Return the pixels of a mask whose distance from its outside is at most the width of the band.

    The width is `BAND` of the diagonal of the image, rounded to pixels, and at least one. Distances are those of a
    chessboard, and the outside of the image is outside of the mask, as in the authors' code (3x3 erosions).
    """
    left, top, right, bottom = map(int, mask.box_xyxy or (0, 0, 0, 0))
    inside = mask.part((left, top, right, bottom))
    width = max(1, round(BAND * math.hypot(*mask.size)))
    return Band(left, top, inside & ~minimum_filter(inside, size=2 * width + 1, mode="constant", cval=0))


def boundary_iou(band: Band, other: Band) -> float:
    """Return the Boundary IoU of two masks of an image, given their bands, 0-1; 0 for two empty ones."""
    left, top = max(band.left, other.left), max(band.top, other.top)
    first, second = (each.pixels[top - each.top :, left - each.left :] for each in (band, other))
    height, width = np.minimum(first.shape, second.shape).tolist()
    intersection = int((first[:height, :width] & second[:height, :width]).sum())
    union = int(band.pixels.sum() + other.pixels.sum()) - intersection
    return intersection / max(union, 1)


def boundary_pairs(
    pairs: Pairs,
    masks: Sequence[Rle],
    truth: Sequence[tuple[Region, tuple[int, int]]],
    crowd: Bool[np.ndarray, " G"],
) -> Pairs:
    """Return the pairs with the smaller of the IoU of their masks and their Boundary IoU, as for Boundary AP.

    Pairs with a crowd region keep the IoU of their masks, as in the authors' code. Bands are computed only of masks in
    `pairs`, which overlap.

    Args:
        pairs: Pairs of a detection and an object, with the IoU of their masks.
        masks: The mask of each detection.
        truth: The mask of each object, with the (height, width) of its image.
        crowd: Which objects are crowd regions.
    """
    band_of_object = lru_cache(CACHED)(lambda g: band(rasterised(*truth[g])))
    iou = pairs.iou.copy()
    of_detection = groupby(
        np.flatnonzero(~crowd[pairs.object]).tolist(), lambda place: pairs.detection[place]
    )
    for n, places in of_detection:
        found = band(masks[n])
        for place in places:
            iou[place] = min(iou[place], boundary_iou(found, band_of_object(int(pairs.object[place]))))
    return Pairs.of(pairs.detection, pairs.object, iou)
