"""The IoUs of the detections and the objects of an image, of overlapping pairs alone.

An image of 20,000 x 20,000 pixels may have 20,000 detections and objects: a matrix of all pairs would take 3 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from querybox.data.records import ImageRecord
from querybox.inference.detections import Detections

_PAIRS = 2**20
"""Number of pairs whose IoU is computed at once; it bounds the memory."""


class Overlaps(NamedTuple):
    """P pairs of a detection and an object with an IoU above 0, sorted by detection, then by object."""

    detection: Int[np.ndarray, " P"]
    object: Int[np.ndarray, " P"]
    iou: Float[np.ndarray, " P"]
    """IoU; for a crowd region, the fraction of the detection inside it."""
    num_objects: int

    @classmethod
    def of(cls, record: ImageRecord, detections: Detections) -> Self:
        """Find the overlapping pairs of an image."""
        boxes, objects = detections.boxes_xyxy.double().numpy(), record.boxes_xyxy
        order = np.argsort(boxes[:, 1], kind="stable")  # those of a chunk are near one another
        empty = np.zeros(0, dtype=np.int64)
        parts = [(empty, empty, np.zeros(0))]
        rows = max(1, _PAIRS // max(1, len(objects)))
        for start in range(0, len(order), rows):
            chunk = order[start : start + rows]
            top, bottom = boxes[chunk, 1].min(), boxes[chunk, 3].max()
            near = np.flatnonzero((objects[:, 1] < bottom) & (objects[:, 3] > top))
            iou = pairwise_iou(boxes[chunk], objects[near], record.crowd[near])
            n, g = np.nonzero(iou)
            parts.append((chunk[n], near[g], iou[n, g]))
        detection, object_, iou = map(np.concatenate, zip(*parts, strict=True))
        order = np.lexsort((object_, detection))
        return cls(detection[order], object_[order], iou[order], len(objects))

    def rows(self, detections: Int[np.ndarray, " _"]) -> Iterator[tuple[int, Float64[np.ndarray, " G"]]]:
        """Yield each of some detections with its IoU with each object."""
        bounds = np.searchsorted(self.detection, np.stack([detections, detections + 1], 1))
        for detection, (first, last) in zip(detections.tolist(), bounds.tolist(), strict=True):
            iou = np.zeros(self.num_objects)
            iou[self.object[first:last]] = self.iou[first:last]
            yield detection, iou

    def where(self, kept: Bool[np.ndarray, " P"]) -> Self:
        """Return some of the pairs."""
        return self._replace(detection=self.detection[kept], object=self.object[kept], iou=self.iou[kept])


def pairwise_iou(
    boxes_xyxy: Float64[np.ndarray, "N 4"],
    objects_xyxy: Float64[np.ndarray, "G 4"],
    crowd: Bool[np.ndarray, " G"],
) -> Float64[np.ndarray, "N G"]:
    """Return the IoU of each box with each object; for a crowd, the fraction of the box inside it."""
    boxes, objects = boxes_xyxy[:, None], objects_xyxy[None]
    low, high = np.maximum(boxes[..., :2], objects[..., :2]), np.minimum(boxes[..., 2:], objects[..., 2:])
    iou: Float64[np.ndarray, "N G"] = (high - low).clip(min=0).prod(-1)  # intersection
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)  # [N, 1]
    union = area + (objects[..., 2:] - objects[..., :2]).prod(-1) - iou
    iou /= np.where(crowd, area, union).clip(min=np.finfo(float).tiny)
    return iou
