"""Copy-paste (Ghiasi et al. 2021): objects of another image are pasted into an image by their masks."""

from __future__ import annotations

import numpy as np
import torch

from querybox.data.settings import DataSettings
from querybox.data.transforms import Sample, flip, mask_boxes
from querybox.data.windows import Window, clipped, show

SCALES = 0.5, 1.5
"""Range of the factor by which the other image is scaled after it has been fitted into this one."""
MIN_VISIBLE = 0.1
"""Minimum fraction of its pixels that an object beneath others must keep."""
_BLACK = (0.0, 0.0, 0.0)


def copy_paste(sample: Sample, source: Sample, settings: DataSettings, rng: np.random.Generator) -> Sample:
    """Return an image with a random subset of the objects of another one, pasted without blending.

    The other image is flipped like all images, fitted into this one, scaled, and placed at random: inside, or covering
    this one if it is larger. Of its objects, those whose centre is in this image are pasted. An object beneath them
    loses the pixels that are covered, and its box becomes that of the rest of its mask. It is dropped if less than
    `MIN_VISIBLE` of its pixels remain, or if its box has a side below one pixel.

    Args:
        sample: The image and its objects.
        source: The image whose objects are pasted.
        settings: Probabilities of flips.
        rng: Source of all random numbers.

    Returns:
        `sample` itself if the masks of one of the images are not known, or nothing is pasted.
    """
    if sample.masks is None or source.masks is None or not len(source.labels):
        return sample
    source = flip(source, settings, rng)
    count = int(rng.integers(1, len(source.labels), endpoint=True))
    chosen = np.sort(rng.permutation(len(source.labels))[:count])
    height, width = sample.pixels.shape[-2:]
    window = place(Window.of(source.pixels), (height, width), rng)
    pasted = show(source.objects(torch.from_numpy(chosen)), window, (height, width), _BLACK)
    assert pasted.masks is not None
    pasted = pasted.objects(pasted.masks.any(2).any(1))
    if not len(pasted.labels):
        return sample
    assert pasted.masks is not None
    covered = pasted.masks.any(0)
    masks = sample.masks & ~covered
    before, after = sample.masks.sum((1, 2)), masks.sum((1, 2))
    boxes = sample.boxes_xyxy.clone()
    boxes[after < before] = mask_boxes(masks[after < before])
    beneath = sample._replace(boxes_xyxy=boxes, masks=masks).objects(after >= MIN_VISIBLE * before)
    assert beneath.masks is not None
    return clipped(
        Sample(
            torch.where(covered, pasted.pixels, sample.pixels),
            torch.cat([beneath.boxes_xyxy, pasted.boxes_xyxy]),
            torch.cat([beneath.labels, pasted.labels]),
            torch.cat([beneath.masks, pasted.masks]),
        )
    )


def place(image: Window, shape: tuple[int, int], rng: np.random.Generator) -> Window:
    """Return the window of an image that a canvas of this (height, width) shows, scaled and placed at random."""
    scale = min(shape[0] / image.height, shape[1] / image.width) * rng.uniform(*SCALES)
    height, width = (max(1, round(side / scale)) for side in shape)
    top, left = (
        int(rng.integers(min(0, free), max(0, free), endpoint=True))
        for free in (image.height - height, image.width - width)
    )
    return Window(left, top, width, height)
