"""COCO's average precision and recall (cocodataset.org/#detection-eval), vectorised over images.

The results are those of pycocotools. Its loops over images, classes, thresholds and area ranges are array operations
here. One loop is left, because matching is sequential: it matches the highest-scoring detection of every group, then
the second of every group, and so on.

Legend: N detections, G objects, P overlapping pairs of the two, A area ranges, T IoU thresholds, R recalls, C classes.
A group is an image and a class; groups are numbered by class, then by image id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from querybox.data.records import DetectionData
from querybox.evaluation.result import IOU_THRESHOLDS, METRICS, RECALLS
from querybox.inference.detections import Detections

AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Bounds in square pixels, both inclusive, of all, small, medium and large objects."""
MAX_DETECTIONS = (1, 10, 100)
"""Limits on the number of detections per image and class."""
UNMATCHED, TRUE_POSITIVE, IGNORED = 0, 1, 2
"""Outcome of a detection: matched to no object, to an object, or to an ignored object."""
CHUNK = 2**20
"""Number of IoUs that are computed at once, up to those of one detection; it bounds the memory."""


class Objects(NamedTuple):
    """The objects of all images, sorted by group."""

    group: Int[np.ndarray, " G"]
    boxes_xyxy: Float[np.ndarray, "G 4"]
    ignored: Bool[np.ndarray, "A G"]
    """Crowd regions, and objects outside the area range: a detection matched to one is not counted."""
    crowd: Bool[np.ndarray, " G"]
    """Crowd regions, which any number of detections may be matched to."""
    place: Int[np.ndarray, " G"]
    """Index of each object among those of all images, which are in ascending order of their ids."""


class DetectionTable(NamedTuple):
    """The detections of all images, sorted by group, then by descending score."""

    group: Int[np.ndarray, " N"]
    boxes_xyxy: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    rank: Int[np.ndarray, " N"]
    """Index within the group, from 0, divided by the number of views of the image."""
    outside: Bool[np.ndarray, "A N"]
    """Detections outside the area range: not a false positive if unmatched."""
    place: Int[np.ndarray, " N"]
    """Index of each detection among those of all images, which are in ascending order of their ids."""


class Pairs(NamedTuple):
    """Detections and objects of one group with IoU >= 0.5, sorted by detection, then by ascending IoU, then by object.

    Of objects with the same IoU, a detection is matched to the last one, as by pycocotools.
    """

    detection: Int[np.ndarray, " P"]
    object: Int[np.ndarray, " P"]
    iou: Float[np.ndarray, " P"]

    @classmethod
    def of(
        cls, detection: Int[np.ndarray, " n"], object_: Int[np.ndarray, " n"], iou: Float[np.ndarray, " n"]
    ) -> Self:
        """Return those of some pairs that have this IoU, sorted."""
        kept = np.flatnonzero(iou >= IOU_THRESHOLDS[0])
        kept = kept[np.lexsort((object_[kept], iou[kept], detection[kept]))]
        return cls(detection[kept], object_[kept], iou[kept])

    @classmethod
    def joined(cls, parts: Iterable[Pairs]) -> Self:
        """Concatenate pairs of consecutive detections."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(*map(np.concatenate, zip((empty, empty, np.zeros(0)), *parts, strict=True)))


def average_precision(
    data: DetectionData, detections: Mapping[int, Detections]
) -> tuple[dict[str, float], Float[np.ndarray, "T R C"]]:
    """Compute the COCO metrics.

    Args:
        data: The images and their objects.
        detections: Detections of every image by image id, with the labels of `data`.

    Returns:
        The values of `METRICS`, and the interpolated precision by IoU threshold, recall and label; NaN where there is
        no object.
    """
    objects, table = gather_objects(data), gather_detections(data, detections)
    return summarise(data, objects, table, overlapping_pairs(table, objects))


def summarise(
    data: DetectionData, objects: Objects, table: DetectionTable, pairs: Pairs
) -> tuple[dict[str, float], Float[np.ndarray, "T R C"]]:
    """Compute the COCO metrics from the IoUs of detections and objects; see `average_precision`."""
    outcome = match(table, objects, pairs)
    first_groups = np.arange(len(data.categories) + 1) * len(data.images)  # of each label
    counts = np.stack(
        [np.diff(np.searchsorted(objects.group[~ignored], first_groups)) for ignored in objects.ignored]
    )  # [A, C]
    precision, recall = curves(table, outcome, np.searchsorted(table.group, first_groups), counts)
    by_area = [mean(precision[:, :, :, area]) for area in range(len(AREA_RANGES))]
    values = [
        by_area[0],
        mean(precision[0, :, :, 0]),
        mean(precision[5, :, :, 0]),
        *by_area[1:],
        *(mean(recall[..., 0, limit]) for limit in range(len(MAX_DETECTIONS))),
        *(mean(recall[..., area, -1]) for area in range(1, len(AREA_RANGES))),
    ]
    return dict(zip(METRICS, values, strict=True)), precision[..., 0]


def gather_objects(data: DetectionData) -> Objects:
    """Concatenate the objects of all images."""
    images = sorted(data.images, key=lambda image: image.id)
    position = np.repeat(np.arange(len(images)), [len(image.labels) for image in images])
    group = np.concatenate([np.zeros(0, dtype=np.int64), *(image.labels for image in images)]) * len(images)
    group += position
    order = np.argsort(group, kind="stable")
    areas = np.concatenate([np.zeros(0), *(image.areas for image in images)])[order]
    crowd = np.concatenate([np.zeros(0, dtype=bool), *(image.crowd for image in images)])[order]
    return Objects(
        group=group[order],
        boxes_xyxy=np.concatenate([np.zeros((0, 4)), *(image.boxes_xyxy for image in images)])[order],
        ignored=crowd | outside_areas(areas),
        crowd=crowd,
        place=order,
    )


def gather_detections(
    data: DetectionData, detections: Mapping[int, Detections], *, per_view: bool = True
) -> DetectionTable:
    """Concatenate the detections of all images, at most 100 per view and class.

    Args:
        data: The images.
        detections: The detections of each by image id.
        per_view: Whether the limits are those of a view, of which an image with tiles has several, or of an image.
    """
    by_image = [detections[image_id] for image_id in sorted(image.id for image in data.images)]
    position = np.repeat(np.arange(len(by_image)), [len(image) for image in by_image])
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(image.labels.numpy() for image in by_image)])
    scores = np.concatenate([np.zeros(0), *(image.scores.double().numpy() for image in by_image)])
    boxes = np.concatenate([np.zeros((0, 4)), *(image.boxes_xyxy.double().numpy() for image in by_image)])
    group = labels * len(by_image) + position
    order = np.lexsort((-scores, group))
    views = np.array([image.views if per_view else 1 for image in by_image], dtype=np.int64)
    rank = ranks(group[order]) // views[position[order]]
    order, rank = order[rank < MAX_DETECTIONS[-1]], rank[rank < MAX_DETECTIONS[-1]]
    return DetectionTable(
        group=group[order],
        boxes_xyxy=boxes[order],
        scores=scores[order],
        rank=rank,
        outside=outside_areas((boxes[order, 2:] - boxes[order, :2]).prod(1)),
        place=order,
    )


def overlapping_pairs(table: DetectionTable, objects: Objects) -> Pairs:
    """Find the pairs of a detection and an object that may be matched."""
    order, first, count = near_objects(table, objects)
    totals = count.sum(1)
    chunk = np.cumsum(totals) // CHUNK
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    bounds = pairwise([*starts.tolist(), len(totals)])
    return Pairs.joined(chunk_pairs(table, objects, order, first, count, np.arange(*each)) for each in bounds)


def near_objects(
    table: DetectionTable, objects: Objects
) -> tuple[Int[np.ndarray, " G"], Int[np.ndarray, "N K"], Int[np.ndarray, "N K"]]:
    """Find the objects that a detection may overlap, without comparing all of an image, of which there may be many.

    The objects are sorted along the axis along which they are spread more. Those of similar lengths are searched
    together: to overlap a detection, one has to begin before its end, and not further before its beginning than the
    maximum of these lengths.

    Returns:
        The order of the objects: by length, group and position. For each detection and each of K lengths, the first
        object in this order, and their number.
    """
    axis = int(np.ptp(objects.boxes_xyxy[:, :2], axis=0).argmax()) if len(objects.group) else 0
    starts, ends = objects.boxes_xyxy[:, axis], objects.boxes_xyxy[:, axis + 2]
    begin, end = table.boxes_xyxy[:, axis], table.boxes_xyxy[:, axis + 2]
    exponents = np.frexp(ends - starts)[1]  # a length is below 2 to the power of its exponent
    order, first, last, before = [np.zeros(0, dtype=np.int64)], [], [], 0
    for exponent in np.unique(exponents):
        same = np.flatnonzero(exponents == exponent)
        same = same[np.lexsort((starts[same], objects.group[same]))]
        places = np.unique(starts[same])
        keys = objects.group[same] * (len(places) + 1) + np.searchsorted(places, starts[same])
        own = table.group * (len(places) + 1)
        low = own + np.searchsorted(places, begin - 2.0**exponent)
        first.append(before + np.searchsorted(keys, low))
        last.append(before + np.searchsorted(keys, own + np.searchsorted(places, end)))
        order.append(same)
        before += len(same)
    firsts, lasts = (
        np.array(each, dtype=np.int64).reshape(len(each), len(begin)).T for each in (first, last)
    )
    return np.concatenate(order), firsts, (lasts - firsts).clip(min=0)


def chunk_pairs(
    table: DetectionTable,
    objects: Objects,
    order: Int[np.ndarray, " G"],
    first: Int[np.ndarray, "N K"],
    count: Int[np.ndarray, "N K"],
    chunk: Int[np.ndarray, " M"],
) -> Pairs:
    """Find the pairs of some detections.

    Args:
        table: The detections.
        objects: The objects.
        order: See `near_objects`, as the following two.
        first: Index in this order of the first object that each detection may overlap.
        count: Number of these objects.
        chunk: Indices of the detections.
    """
    numbers, starts = count[chunk].ravel(), first[chunk].ravel()
    n = np.repeat(np.repeat(chunk, count.shape[1]), numbers)
    g = order[np.arange(len(n)) + np.repeat(starts - (numbers.cumsum() - numbers), numbers)]
    boxes, others = table.boxes_xyxy[n], objects.boxes_xyxy[g]
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(1)
    area, other_area = (boxes[:, 2:] - boxes[:, :2]).prod(1), (others[:, 2:] - others[:, :2]).prod(1)
    union = np.where(objects.crowd[g], area, area + other_area - intersection)
    iou = np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)
    return Pairs.of(n, g, iou)


def match(table: DetectionTable, objects: Objects, pairs: Pairs) -> Int8[np.ndarray, "A T N"]:
    """Match detections to objects and return the outcome of each, at each area range and IoU threshold.

    In order of score, each detection of a group is matched to the free object with the highest IoU, if that reaches the
    threshold; ignored objects are matched only if no other object can be.
    """
    outcome = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), len(table.group)), UNMATCHED, dtype=np.int8)
    taken = np.zeros((len(AREA_RANGES), len(IOU_THRESHOLDS), len(objects.group)), dtype=bool)
    for n, g, iou in rounds(table, pairs):
        eligible = (~taken[..., g] | objects.crowd[g]) & (iou >= IOU_THRESHOLDS[:, None])  # [A, T, pairs]
        preference = np.arange(len(g)) + np.where(objects.ignored[:, None, g], 0, len(g))
        first = np.flatnonzero(np.diff(n, prepend=-1))  # first pair of each detection
        best = np.maximum.reduceat(np.where(eligible, preference, -1), first, axis=-1)  # [A, T, detections]
        area, threshold, index = np.nonzero(best >= 0)
        matched = g[best[area, threshold, index] % len(g)]
        taken[area, threshold, matched] = True
        outcome[area, threshold, n[first][index]] = np.where(
            objects.ignored[area, matched], IGNORED, TRUE_POSITIVE
        )
    return outcome


def rounds(table: DetectionTable, pairs: Pairs) -> Iterator[Pairs]:
    """Yield the pairs of every group's first detection with pairs, then those of every group's second, and so on."""
    detections, index = np.unique(pairs.detection, return_inverse=True)
    rank = ranks(table.group[detections])[index]
    order = np.argsort(rank, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(rank[order])) + 1):
        if len(part):
            yield Pairs(pairs.detection[part], pairs.object[part], pairs.iou[part])


def curves(
    table: DetectionTable,
    outcome: Int8[np.ndarray, "A T N"],
    bounds: Int[np.ndarray, " C1"],
    counts: Int[np.ndarray, "A C"],
) -> tuple[Float[np.ndarray, "T R C A"], Float[np.ndarray, "T C A M"]]:
    """Return the interpolated precision at each recall, and the recall at each limit on the number of detections.

    Args:
        table: The detections.
        outcome: The outcome of each, from `match`.
        bounds: The detections of label c are those from ``bounds[c]`` to ``bounds[c + 1]``.
        counts: Number of objects by area range and label.
    """
    shape = (len(IOU_THRESHOLDS), len(RECALLS), counts.shape[1], len(AREA_RANGES), len(MAX_DETECTIONS))
    precision, recall = np.full(shape[:4], np.nan), np.full((shape[0], *shape[2:]), np.nan)
    for label, (start, stop) in enumerate(pairwise(bounds)):
        order = start + np.argsort(-table.scores[start:stop], kind="stable")
        for area in np.flatnonzero(counts[:, label]):
            count = int(counts[area, label])
            true_positive = outcome[area][:, order] == TRUE_POSITIVE  # [T, n]
            false_positive = (outcome[area][:, order] == UNMATCHED) & ~table.outside[area, order]
            precision[:, :, label, area] = precision_at_recalls(true_positive, false_positive, count)
            for index, limit in enumerate(MAX_DETECTIONS):
                recall[:, label, area, index] = true_positive[:, table.rank[order] < limit].sum(1) / count
    return precision, recall


def precision_at_recalls(
    true_positive: Bool[np.ndarray, "T n"], false_positive: Bool[np.ndarray, "T n"], count: int
) -> Float[np.ndarray, "T R"]:
    """Return the highest precision with a recall of at least each of `RECALLS`; 0 where it is not reached."""
    true_positives = true_positive.cumsum(1)
    precision = true_positives / np.maximum(true_positives + false_positive.cumsum(1), 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))
    return np.stack(
        [row[np.searchsorted(hits / count, RECALLS)] for row, hits in zip(best, true_positives, strict=True)]
    )


def outside_areas(areas: Float[np.ndarray, " n"]) -> Bool[np.ndarray, "A n"]:
    """Return which areas, in square pixels, lie outside each of `AREA_RANGES`."""
    return (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])


def ranks(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the index of each element within its group; `group` must be sorted."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def mean(values: Float[np.ndarray, " *_"]) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else float("nan")
