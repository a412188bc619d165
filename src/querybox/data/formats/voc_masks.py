"""Masks of Pascal VOC: `SegmentationObject/photo.png`, a palette image.

Its index n is the n-th object of the XML file. Index 0 is background; 255 is void, the border of objects, which belongs
to none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from querybox.boxes import iou_and_giou
from querybox.data.bitmaps import read_indices
from querybox.errors import DataError
from querybox.masks import Rle

MASKS = "SegmentationObject"
"""Name of their folder."""
_VOID = 255
_MIN_IOU = 0.5
"""Minimum IoU of the box around a mask and the box of its object; with less, the order of objects is another one."""


def read_masks(
    file: Path, boxes_xyxy: Float64[np.ndarray, "G 4"], report: Callable[[str], None]
) -> list[Rle | None] | None:
    """Return the mask of each object of an image; None without a file.

    Args:
        file: The palette image.
        boxes_xyxy: The boxes of the objects in the XML file, in its order, in pixels.
        report: Is called with a description of each mask that cannot be used.
    """
    if not file.is_file():
        return None
    try:
        indices = read_indices(file)
    except DataError as error:
        report(str(error))
        return None
    found = [int(index) for index in np.unique(indices) if index not in {0, _VOID}]
    masks: list[Rle | None] = [None] * len(boxes_xyxy)
    for index in found:
        if index > len(masks):
            report(f"{file}: has an object {index}; the XML file has {len(masks)}")
            continue
        mask = Rle.of(indices == index)
        around = torch.tensor(mask.box_xyxy, dtype=torch.float64)
        overlap = float(iou_and_giou(around, torch.from_numpy(boxes_xyxy[index - 1]))[0])
        if overlap >= _MIN_IOU:
            masks[index - 1] = mask
        else:
            report(
                f"{file}: the box around object {index} has an IoU of {overlap:.2f} with that in the XML file"
            )
    return masks
