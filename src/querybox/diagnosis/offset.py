"""A systematic difference between predicted boxes, which follow the training data, and those of the evaluated data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field

from querybox.data import DetectionData
from querybox.evaluation.average_precision import average_precision
from querybox.evaluation.errors import BACKGROUND_IOU
from querybox.evaluation.overlaps import Overlaps
from querybox.inference.detections import Detections

Unit: TypeAlias = Literal["size", "pixel", "position"]
"""Unit of a shift: the width and the height of the object; a pixel of the image; the position of its center."""
Pair: TypeAlias = tuple[float, float]
Ratio: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]

MIN_PAIRS = 20
"""Minimum number of detected objects: the median of fewer may fit them by chance."""
CONSISTENT = 0.8
"""Fraction of the boxes that differ in the same direction; half of them do if there is no offset."""
MAYBE_CONSISTENT = 0.65
"""The same fraction before any correction, when boxes may be compared with neighbours of their objects."""
MIN_GAIN = 0.05
"""Increase of AP by the correction."""
ROUNDS = 4
"""Number of times that boxes are corrected and assigned to objects again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """How the boxes of detections differ from those of the objects."""

    unit: Unit
    shift: Pair
    """Median horizontal and vertical distance of the centers, in the unit."""
    ratio: tuple[Ratio, Ratio]
    """Median ratio of the widths and of the heights, of detections to objects."""
    consistent: float = 0.0
    """Fraction of the boxes that differ in the same direction, 0-1: the largest of the four."""
    AP: float = 0.0
    """AP without the offset."""

    def correct(self, boxes_xyxy: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
        """Return boxes of detections, in pixels, without the offset."""
        center, size = centers_and_sizes(boxes_xyxy)
        size = size / self.ratio
        if self.unit == "position":
            center = center / (1 + np.array(self.shift))
        else:
            center = center - self.shift * (size if self.unit == "size" else np.ones(2))
        return np.concatenate([center - size / 2, center + size / 2], 1)


def find_offset(
    data: DetectionData, detections: Mapping[int, Detections], confident: Mapping[int, Detections], AP: float
) -> Offset | None:
    """Find the offset of the boxes whose correction increases the AP; None if there is none.

    Args:
        data: The evaluated images and their objects.
        detections: Detections of each image, by image id.
        confident: Those of them that are compared with the objects, without duplicates.
        AP: The AP of the detections.
    """
    none = Offset(unit="pixel", shift=(0.0, 0.0), ratio=(1.0, 1.0))
    if measure(none, *pairs(data, confident, none)[:2]).consistent < MAYBE_CONSISTENT:
        return None
    fits = [fit(data, confident, replace(none, unit=unit)) for unit in get_args(Unit)]
    # Without a shift, all units fit alike: the first one is taken.
    offset, _ = max(fits, key=lambda each: round(each[1] / data.num_objects, 3))
    if offset.consistent < CONSISTENT:
        return None
    corrected, _ = average_precision(data, {key: moved(each, offset) for key, each in detections.items()})
    return replace(offset, AP=corrected["AP"]) if corrected["AP"] >= AP + MIN_GAIN else None


def fit(data: DetectionData, detections: Mapping[int, Detections], offset: Offset) -> tuple[Offset, float]:
    """Return the offset in the unit of a first one, and the sum of the IoUs of the corrected boxes with objects.

    Boxes are assigned to objects without the offset that is known so far: one of half of the size is found in rounds.
    """
    for _ in range(ROUNDS):
        boxes, objects, iou = pairs(data, detections, offset)
        offset = measure(offset, boxes, objects)
    return offset, float(iou.sum())


def measure(
    offset: Offset, boxes_xyxy: Float[np.ndarray, "N 4"], objects_xyxy: Float[np.ndarray, "N 4"]
) -> Offset:
    """Return the offset of boxes of detections from those of their objects, in the unit of another one."""
    if len(boxes_xyxy) < MIN_PAIRS:
        return replace(offset, consistent=0.0)
    center, size = centers_and_sizes(boxes_xyxy)
    object_center, object_size = centers_and_sizes(objects_xyxy)
    units = {"pixel": np.ones_like(size), "size": object_size, "position": object_center}
    shift, ratio = (center - object_center) / units[offset.unit], size / object_size
    deviations = np.concatenate([shift, ratio - 1], 1)
    shift_x, shift_y, ratio_w, ratio_h = np.median(np.concatenate([shift, ratio], 1), axis=0).tolist()
    return replace(
        offset,
        shift=(shift_x, shift_y),
        ratio=(ratio_w, ratio_h),
        consistent=float(np.abs(np.sign(deviations).mean(0)).max() / 2 + 0.5),
    )


def pairs(
    data: DetectionData, detections: Mapping[int, Detections], offset: Offset
) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N 4"], Float[np.ndarray, " N"]]:
    """Pair detections and objects of a class that overlap more, without the offset, than each does with any other.

    Returns:
        The boxes of the detections, with the offset; those of the objects; the IoUs without the offset.
    """
    boxes, objects, ious = [], [], []
    for image in data.images:
        found = detections[image.id]
        overlaps = Overlaps.of(image, moved(found, offset))
        same = found.labels.numpy()[overlaps.detection] == image.labels[overlaps.object]
        overlaps = overlaps.where(same & ~image.crowd[overlaps.object] & (overlaps.iou >= BACKGROUND_IOU))
        order = np.argsort(-overlaps.iou, kind="stable")
        _, of_detections = np.unique(overlaps.detection[order], return_index=True)
        _, of_objects = np.unique(overlaps.object[order], return_index=True)
        mutual = order[np.intersect1d(of_detections, of_objects)]
        boxes.append(found.boxes_xyxy.double().numpy()[overlaps.detection[mutual]])
        objects.append(image.boxes_xyxy[overlaps.object[mutual]])
        ious.append(overlaps.iou[mutual])
    return np.concatenate(boxes), np.concatenate(objects), np.concatenate(ious)


def moved(detections: Detections, offset: Offset) -> Detections:
    """Return detections of an image without an offset of their boxes."""
    boxes = offset.correct(detections.boxes_xyxy.double().numpy())
    return replace(detections, boxes_xyxy=torch.from_numpy(boxes).float(), masks=None)


def centers_and_sizes(
    boxes_xyxy: Float[np.ndarray, "N 4"],
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"]]:
    """Return the centers, and the widths and heights."""
    return (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
