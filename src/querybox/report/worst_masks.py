"""The worst masks of the report: those of matched objects and detections with the lowest IoU."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from querybox.data import DetectionData, ImageRecord, read_image
from querybox.errors import ImageError
from querybox.evaluation.boundaries import band, boundary_iou
from querybox.evaluation.result import Evaluation
from querybox.html import jpeg_url, metric
from querybox.inference.detections import Detections
from querybox.inference.draw import draw_masks
from querybox.masks import Rle, mask_iou, rasterised
from querybox.report.examples import MAX_SIDE, Example

MARGIN = 0.2
"""Part of the image around the masks that is shown, as a fraction of their size."""
SIDE = 400
"""Minimum longer side of a picture in pixels, to which parts of images are enlarged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPair:
    """The masks of an object and of the detection that is matched to it."""

    record: ImageRecord
    object: Rle
    detection: Rle
    detections: Detections
    """The detections of the image."""
    index: int
    """Index of the detection in `detections`."""
    iou: float
    """IoU of the two masks, 0-1."""


def worst_masks(evaluation: Evaluation, data: DetectionData, count: int) -> list[MaskPair]:
    """Return the `count` pairs of masks with the lowest IoU, among objects and detections matched by their boxes.

    Objects without a mask have none; there are none at all if the detections have no masks.
    """
    pairs = (pair for record in data.images for pair in matched_masks(evaluation, record))
    return heapq.nsmallest(count, pairs, key=lambda pair: pair.iou)


def matched_masks(evaluation: Evaluation, record: ImageRecord) -> Iterator[MaskPair]:
    """Yield the pairs of masks of one image."""
    detections = evaluation.detections[record.id].above(evaluation.operating_point.threshold)
    if record.masks is None or detections.masks is None:
        return
    matched = evaluation.operating_point.assignments[record.id].matched
    for n in np.flatnonzero(matched >= 0).tolist():
        if (region := record.masks[matched[n]]) is not None:
            mask, found = rasterised(region, (record.height, record.width)), detections.masks[n]
            iou = float(mask_iou([found], [mask], np.zeros(1, dtype=bool))[0, 0])
            yield MaskPair(
                record=record, object=mask, detection=found, detections=detections, index=n, iou=iou
            )


def draw_mask_pair(pair: MaskPair) -> Example:
    """Draw both masks, each on the part of the image around them."""
    urls, problem, detections = {}, "", pair.detections
    label, score = int(detections.labels[pair.index]), float(detections.scores[pair.index])
    try:
        image = read_image(pair.record.file, pair.object.size, pixel_range=detections.pixel_range)
    except ImageError as error:
        problem = str(error)
    else:
        for shows, mask in (("Object", pair.object), ("Detection", pair.detection)):
            urls[shows] = jpeg_url(draw_part(image, mask, surroundings(pair), label), MAX_SIDE)
    boundary = metric(boundary_iou(band(pair.object), band(pair.detection)))
    quality = f"mask IoU {metric(pair.iou)}, boundary IoU {boundary}"
    return Example(
        name=pair.record.path.name,
        caption=f"{detections.names[pair.index]}, score {score:.2f}: {quality}.",
        urls=urls,
        problem=problem,
    )


def surroundings(pair: MaskPair) -> tuple[int, int, int, int]:
    """Return the part of the image with both masks and a margin: left, top, right, bottom in pixels."""
    height, width = pair.object.size
    boxes = np.array([box for mask in (pair.object, pair.detection) if (box := mask.box_xyxy)])
    if not len(boxes):
        return 0, 0, width, height
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    margin = np.ceil(MARGIN * (high - low))
    left, top = np.maximum(low - margin, 0).astype(int).tolist()
    right, bottom = np.minimum(high + margin, [width, height]).astype(int).tolist()
    return left, top, right, bottom


def draw_part(image: Image.Image, mask: Rle, part: tuple[int, int, int, int], label: int) -> Image.Image:
    """Draw a mask on a part of an image, enlarged by a whole number where it is small."""
    cut = image.crop(part)
    factor = math.ceil(SIDE / max(cut.size))
    cut = cut.resize((cut.width * factor, cut.height * factor), Image.Resampling.BICUBIC)
    inside = mask.part(part).repeat(factor, axis=0).repeat(factor, axis=1)
    return draw_masks(cut, [Rle.of(inside)], np.array([label]))
