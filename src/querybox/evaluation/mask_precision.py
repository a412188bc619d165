"""COCO's average precision and recall of masks (cocodataset.org/#detection-eval), as by pycocotools with ``segm``.

They are those of boxes with the IoU of masks, and the area of a detection is that of its mask.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from querybox.data.records import DetectionData, ImageRecord
from querybox.evaluation.average_precision import (
    DetectionTable,
    Objects,
    Pairs,
    gather_detections,
    gather_objects,
    outside_areas,
    summarise,
)
from querybox.evaluation.boundaries import boundary_pairs
from querybox.inference.detections import Detections
from querybox.masks import Region, Rle, mask_iou, rasterised

logger = logging.getLogger(__name__)


def with_masks(data: DetectionData, detections: Mapping[int, Detections]) -> DetectionData | None:
    """Return the images whose objects all have a mask; None if there are no masks to compare.

    Args:
        data: The images and their objects.
        detections: Detections of every image by image id.
    """
    if any(len(found) and found.masks is None for found in detections.values()):
        return None
    if all(record.masks is None for record in data.images):
        return None
    known = {record.id for record in data.images if len(regions(record)) == len(record.labels)}
    if missing := len(data.images) - len(known):
        logger.warning(
            "%s: %d of %d images have objects without a mask and do not count for the metrics of masks",
            data.source,
            missing,
            len(data.images),
        )
    return data.only(known)


class MaskPrecision(NamedTuple):
    """The results of `average_precision` for masks and for their boundaries."""

    masks: tuple[dict[str, float], Float[np.ndarray, "T R C"]]
    boundaries: tuple[dict[str, float], Float[np.ndarray, "T R C"]]


def mask_average_precision(data: DetectionData, detections: Mapping[int, Detections]) -> MaskPrecision:
    """Compute the COCO metrics of masks, and of their boundaries (see `boundary_pairs`).

    Args:
        data: The images and their objects, all of which have a mask.
        detections: Detections of every image by image id, with masks and with the labels of `data`.
    """
    objects, table = gather_objects(data), gather_detections(data, detections, per_view=False)
    images = sorted(data.images, key=lambda image: image.id)
    truth = [(region, (image.height, image.width)) for image in images for region in regions(image)]
    masks = list(chain.from_iterable(detections[image.id].masks or () for image in images))
    found = [masks[place] for place in table.place.tolist()]
    table = table._replace(outside=outside_areas(np.array([mask.area for mask in found], dtype=np.float64)))
    truth = [truth[place] for place in objects.place]
    pairs = mask_pairs(table, objects, found, truth)
    return MaskPrecision(
        masks=summarise(data, objects, table, pairs),
        boundaries=summarise(data, objects, table, boundary_pairs(pairs, found, truth, objects.crowd)),
    )


def regions(record: ImageRecord) -> list[Region]:
    """Return the masks of the objects of an image that have one."""
    return [region for region in record.masks or () if region is not None]


def mask_pairs(
    table: DetectionTable,
    objects: Objects,
    masks: Sequence[Rle],
    truth: Sequence[tuple[Region, tuple[int, int]]],
) -> Pairs:
    """Find the pairs of a detection and an object that may be matched.

    Args:
        table: The detections.
        objects: The objects.
        masks: The mask of each detection of the table.
        truth: The mask of each object, with the (height, width) of its image.
    """
    parts = []
    for group in np.intersect1d(table.group, objects.group):
        first, last = (np.searchsorted(table.group, group, side) for side in ("left", "right"))
        start, stop = (np.searchsorted(objects.group, group, side) for side in ("left", "right"))
        others = [rasterised(region, size) for region, size in truth[start:stop]]
        iou = mask_iou(masks[first:last], others, objects.crowd[start:stop])
        n, g = np.nonzero(iou)
        parts.append(Pairs.of(first + n, start + g, iou[n, g]))
    return Pairs.joined(parts)
