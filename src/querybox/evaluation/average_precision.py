"""COCO's average precision and recall (cocodataset.org/#detection-eval), of all images at once.

The rules are those of pycocotools. Its loops over images, classes, thresholds and areas are array operations here; the
one loop that is left goes by turns: in each image and class the best detection chooses its object first, then the next.

Legend: N detections, G objects, P pairs of the two that overlap, A areas, T IoU thresholds, R recalls, C classes. A
group is an image and class; groups are numbered by class, then by image id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8

from querybox.data.records import DetectionData
from querybox.evaluation.result import IOU_THRESHOLDS, METRICS, RECALLS
from querybox.inference.detections import Detections

AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Least and most pixels, both included: all objects, small, medium and large ones."""
MAX_DETECTIONS = (1, 10, 100)
"""The best so many detections of an image and class count."""
MISSED, HIT, IGNORED = 0, 1, 2
"""What became of a detection: it found no object, an object that counts, or one that does not."""
CHUNK = 10_000
"""Detections whose overlaps are computed together: it bounds the memory."""


class Objects(NamedTuple):
    """What is to be found, in the order of the groups."""

    group: Int[np.ndarray, " G"]
    boxes_xyxy: Float[np.ndarray, "G 4"]
    ignored: Bool[np.ndarray, "A G"]
    """Crowds, and objects outside the area: to find one is neither right nor wrong."""
    crowd: Bool[np.ndarray, " G"]
    """Crowds may be found many times."""


class Found(NamedTuple):
    """What was found, in the order of the groups, best first in each."""

    group: Int[np.ndarray, " N"]
    boxes_xyxy: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    rank: Int[np.ndarray, " N"]
    """Place in its group, from 0."""
    outside: Bool[np.ndarray, "A N"]
    """Of another size than the area's: no mistake there, if it finds nothing."""


class Pairs(NamedTuple):
    """Detections and objects of one group with an IoU of at least 0.5: by detection, the best overlap last."""

    found: Int[np.ndarray, " P"]
    object: Int[np.ndarray, " P"]
    iou: Float[np.ndarray, " P"]


def average_precision(
    data: DetectionData, detections: Mapping[int, Detections]
) -> tuple[dict[str, float], Float[np.ndarray, "T R C"]]:
    """Return the numbers of `METRICS`, and precision by IoU, recall and label; NaN where there is no object.

    Args:
        data: The images and their objects.
        detections: Of every image by its id, with labels of `data`.
    """
    objects, found = gather_objects(data), gather_found(data, detections)
    outcome = match(found, objects, overlapping(found, objects))
    labels = np.arange(len(data.categories) + 1) * len(data.images)  # first group of each
    counts = np.stack(
        [np.diff(np.searchsorted(objects.group[~one], labels)) for one in objects.ignored]
    )  # [A, C]
    precision, recall = curves(found, outcome, np.searchsorted(found.group, labels), counts)
    by_area = [mean(precision[:, :, :, area]) for area in range(len(AREAS))]
    values = [
        by_area[0],
        mean(precision[0, :, :, 0]),
        mean(precision[5, :, :, 0]),
        *by_area[1:],
        *(mean(recall[..., 0, limit]) for limit in range(len(MAX_DETECTIONS))),
        *(mean(recall[..., area, -1]) for area in range(1, len(AREAS))),
    ]
    return dict(zip(METRICS, values, strict=True)), precision[..., 0]


def gather_objects(data: DetectionData) -> Objects:
    """Put the objects of all images together."""
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
    )


def gather_found(data: DetectionData, detections: Mapping[int, Detections]) -> Found:
    """Put the detections of all images together, at most 100 of each image and class."""
    found = [detections[image_id] for image_id in sorted(image.id for image in data.images)]
    position = np.repeat(np.arange(len(found)), [len(one) for one in found])
    labels = torch.cat([torch.zeros(0, dtype=torch.long), *(one.labels for one in found)]).numpy()
    scores = torch.cat([torch.zeros(0), *(one.scores for one in found)]).double().numpy()
    boxes = torch.cat([torch.zeros(0, 4), *(one.boxes_xyxy for one in found)]).double().numpy()
    group = labels * len(found) + position
    order = np.lexsort((-scores, group))
    rank = places(group[order])
    order, rank = order[rank < MAX_DETECTIONS[-1]], rank[rank < MAX_DETECTIONS[-1]]
    return Found(
        group=group[order],
        boxes_xyxy=boxes[order],
        scores=scores[order],
        rank=rank,
        outside=outside_areas((boxes[order, 2:] - boxes[order, :2]).prod(1)),
    )


def overlapping(found: Found, objects: Objects) -> Pairs:
    """Find the pairs that can become a match."""
    first = np.searchsorted(objects.group, found.group, "left")
    count = np.searchsorted(objects.group, found.group, "right") - first
    parts = [pairs_of(found, objects, first, count, start) for start in range(0, len(first), CHUNK)]
    none = np.zeros(0, dtype=np.int64)
    return Pairs(*map(np.concatenate, zip((none, none, np.zeros(0)), *parts, strict=True)))


def pairs_of(
    found: Found, objects: Objects, first: Int[np.ndarray, " N"], count: Int[np.ndarray, " N"], start: int
) -> Pairs:
    """Find the pairs of `CHUNK` detections, whose groups have `count` objects from `first` on."""
    own = np.arange(start, min(start + CHUNK, len(first)))
    n = np.repeat(own, count[own])
    g = np.arange(len(n)) + np.repeat(first[own] - (count[own].cumsum() - count[own]), count[own])
    boxes, others = found.boxes_xyxy[n], objects.boxes_xyxy[g]
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = sides.clip(min=0).prod(1)
    area, other_area = (boxes[:, 2:] - boxes[:, :2]).prod(1), (others[:, 2:] - others[:, :2]).prod(1)
    union = np.where(objects.crowd[g], area, area + other_area - shared)
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    close = np.flatnonzero(iou >= IOU_THRESHOLDS[0])
    close = close[np.lexsort((iou[close], n[close]))]
    return Pairs(n[close], g[close], iou[close])


def match(found: Found, objects: Objects, pairs: Pairs) -> Int8[np.ndarray, "A T N"]:
    """Let detections choose objects, and say what became of them, at each area and threshold.

    In each group the best detection goes first. It takes the free object with the highest IoU, if that reaches the
    threshold; one that counts before one that does not.
    """
    outcome = np.full((len(AREAS), len(IOU_THRESHOLDS), len(found.group)), MISSED, dtype=np.int8)
    taken = np.zeros((len(AREAS), len(IOU_THRESHOLDS), len(objects.group)), dtype=bool)
    for n, g, iou in turns(found, pairs):
        possible = (~taken[..., g] | objects.crowd[g]) & (iou >= IOU_THRESHOLDS[:, None])  # [A, T, pairs]
        preference = np.arange(len(g)) + np.where(objects.ignored[:, None, g], 0, len(g))
        first = np.flatnonzero(np.diff(n, prepend=-1))  # pair of each detection
        best = np.maximum.reduceat(np.where(possible, preference, -1), first, axis=-1)  # [A, T, detections]
        area, threshold, chooser = np.nonzero(best >= 0)
        chosen = g[best[area, threshold, chooser] % len(g)]
        taken[area, threshold, chosen] = True
        outcome[area, threshold, n[first][chooser]] = np.where(objects.ignored[area, chosen], IGNORED, HIT)
    return outcome


def turns(found: Found, pairs: Pairs) -> Iterator[Pairs]:
    """Yield the pairs of the first detection of every group that has any, of the second, and so on."""
    choosers, chooser = np.unique(pairs.found, return_inverse=True)
    turn = places(found.group[choosers])[chooser]
    order = np.argsort(turn, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(turn[order])) + 1):
        if len(part):
            yield Pairs(pairs.found[part], pairs.object[part], pairs.iou[part])


def curves(
    found: Found,
    outcome: Int8[np.ndarray, "A T N"],
    bounds: Int[np.ndarray, " C1"],
    counts: Int[np.ndarray, "A C"],
) -> tuple[Float[np.ndarray, "T R C A"], Float[np.ndarray, "T C A M"]]:
    """Return precision at least at each recall, and the recall with at most each number of detections.

    Args:
        found: The detections.
        outcome: What became of them.
        bounds: The detections of label c are those from ``bounds[c]`` to ``bounds[c + 1]``.
        counts: Objects by area and label.
    """
    shape = (len(IOU_THRESHOLDS), len(RECALLS), counts.shape[1], len(AREAS), len(MAX_DETECTIONS))
    precision, recall = np.full(shape[:4], np.nan), np.full((shape[0], *shape[2:]), np.nan)
    for label, (start, stop) in enumerate(pairwise(bounds)):
        order = start + np.argsort(-found.scores[start:stop], kind="stable")
        for area in np.flatnonzero(counts[:, label]):
            count = int(counts[area, label])
            hits = outcome[area][:, order] == HIT  # [T, n]
            wrong = (outcome[area][:, order] == MISSED) & ~found.outside[area, order]
            precision[:, :, label, area] = precision_at_recalls(hits, wrong, count)
            for limit, most in enumerate(MAX_DETECTIONS):
                recall[:, label, area, limit] = hits[:, found.rank[order] < most].sum(1) / count
    return precision, recall


def precision_at_recalls(
    hits: Bool[np.ndarray, "T n"], wrong: Bool[np.ndarray, "T n"], count: int
) -> Float[np.ndarray, "T R"]:
    """Return the best precision at any score threshold where the recall is at least each of `RECALLS`; 0 beyond."""
    right = hits.cumsum(1)
    precision = right / np.maximum(right + wrong.cumsum(1), 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))
    return np.stack(
        [row[np.searchsorted(found / count, RECALLS)] for row, found in zip(best, right, strict=True)]
    )


def outside_areas(areas: Float[np.ndarray, " n"]) -> Bool[np.ndarray, "A n"]:
    """Tell which `areas`, in pixels, lie outside of each of `AREAS`."""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def places(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number the members of each group from 0; the groups are ascending."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def mean(values: Float[np.ndarray, " *_"]) -> float:
    """Return the mean of the values that are numbers, NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
