"""Panoptic quality (Kirillov et al., 2019), as by COCO's panopticapi.

A detected segment and one of the data match if they have the same class and an IoU above 0.5, so that no segment has
two matches. PQ is the sum of the IoUs of the matches, divided by their number plus half of that of the segments without
a match: SQ, the mean IoU of matches, times RQ, their F1.

Pixels that are void in the data do not count for the IoU. Crowd regions are not matched. A detected segment without a
match is ignored if more than half of its pixels are void or in crowd regions of its class.

Legend: G segments of the data, S detected ones, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from querybox.data.records import DetectionData, ImageRecord
from querybox.html import metric
from querybox.inference.detections import Detections
from querybox.inference.panoptic import PanopticSegmentation
from querybox.masks import mask_numbers, rasterised
from querybox.structures import Category
from querybox.text import or_none


class Quality(NamedTuple):
    """Three numbers in 0-1; NaN if neither the data nor the detections have a segment."""

    PQ: float
    """Panoptic quality."""
    SQ: float
    """Segmentation quality: mean IoU of the matches; 0 without any."""
    RQ: float
    """Recognition quality: F1 of the matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticQuality:
    """The panoptic quality of the segments of detections that score at least a threshold."""

    threshold: float
    """The score threshold: that with the best F1, see `OperatingPoint`."""
    images: int
    """Number of images."""
    categories: tuple[tuple[Category, Quality], ...]
    """The quality of each class, by label."""
    groups: Mapping[str, Quality]
    """Means over the classes of ``all``, ``things`` and ``stuff`` that are not NaN."""

    def rows(self) -> list[list[str]]:
        """Return table rows: the groups, then the classes, with PQ, SQ and RQ."""
        named = [*self.groups.items(), *((category.name, quality) for category, quality in self.categories)]
        return [[name, *map(metric, quality)] for name, quality in named]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN becomes None."""
        return {
            "threshold": self.threshold,
            "images": self.images,
            **{name: _plain(quality) for name, quality in self.groups.items()},
            "categories": [
                {"id": one.id, "name": one.name, "isthing": int(not one.stuff), **_plain(quality)}
                for one, quality in self.categories
            ],
        }


class Counts(NamedTuple):
    """What the quality of each class is computed from."""

    iou: Float64[np.ndarray, " C"]
    """Sum of the IoUs of the matches."""
    matches: Int64[np.ndarray, " C"]
    false_positives: Int64[np.ndarray, " C"]
    false_negatives: Int64[np.ndarray, " C"]

    def add(
        self, record: ImageRecord, numbers: Int32[np.ndarray, "H W"], found: PanopticSegmentation
    ) -> None:
        """Add an image.

        Args:
            record: The image, with its segments.
            numbers: Segment of the data of each pixel, 1 ... G; 0 = void.
            found: The detected segments.
        """
        labels, crowd = record.labels, record.crowd
        shape = (len(labels) + 1, len(found.labels) + 1)
        pairs = numbers.astype(np.int64) * shape[1] + found.numbers
        pixels = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        shared, void = pixels[1:, 1:], pixels[0, 1:]  # [G, S], [S]
        areas = pixels.sum(0)[1:]
        union = pixels.sum(1)[1:, None] + areas - shared - void
        iou = shared / np.maximum(union, 1)
        same = labels[:, None] == found.labels
        matched = same & (iou > 0.5) & ~crowd[:, None]
        rows, columns = np.nonzero(matched)
        np.add.at(self.iou, labels[rows], iou[rows, columns])
        np.add.at(self.matches, labels[rows], 1)
        np.add.at(self.false_negatives, labels[~crowd & ~matched.any(1)], 1)
        ignored = void + (shared * (same & crowd[:, None])).sum(0) > areas / 2
        np.add.at(self.false_positives, found.labels[~ignored & ~matched.any(0)], 1)

    def quality(self) -> list[Quality]:
        """Return the quality of each class."""
        total = self.matches + (self.false_positives + self.false_negatives) / 2
        with np.errstate(invalid="ignore"):  # NaN for 0 / 0
            pq, rq = self.iou / total, self.matches / total
        sq = np.where(total > 0, self.iou / np.maximum(self.matches, 1), np.nan)
        return [Quality(*values) for values in zip(pq.tolist(), sq.tolist(), rq.tolist(), strict=True)]


def panoptic_quality(
    data: DetectionData, detections: Mapping[int, Detections], threshold: float
) -> PanopticQuality:
    """Compute the panoptic quality of the segments that `Detections.panoptic` makes.

    Args:
        data: A panoptic dataset, whose objects all have a mask.
        detections: Detections of every image by image id, with masks and with the labels of `data`.
        threshold: Minimum score of detections (0-1).
    """
    classes = len(data.categories)
    counts = Counts(np.zeros(classes), *np.zeros((3, classes), dtype=np.int64))
    for record in data.images:
        size = (record.height, record.width)
        truth = [rasterised(region, size) for region in record.masks or () if region is not None]
        found = detections[record.id].above(threshold).panoptic()
        counts.add(record, mask_numbers(truth, size), found)
    qualities = counts.quality()
    stuff = np.array([category.stuff for category in data.categories], dtype=bool)
    return PanopticQuality(
        threshold=threshold,
        images=len(data.images),
        categories=tuple(zip(data.categories, qualities, strict=True)),
        groups={
            name: _mean(np.array(qualities).reshape(-1, 3)[chosen])
            for name, chosen in {"all": stuff | True, "things": ~stuff, "stuff": stuff}.items()
        },
    )


def _mean(qualities: Float64[np.ndarray, "C 3"]) -> Quality:
    known = qualities[~np.isnan(qualities[:, 0])]
    return Quality(*known.mean(0).tolist()) if len(known) else Quality(*[float("nan")] * 3)


def _plain(quality: Quality) -> dict[str, float | None]:
    return {name: or_none(value) for name, value in quality._asdict().items()}
