"""Which detection answers for which object: the best score threshold, the confusion matrix, F1 of each image.

Average precision says how good a detector is; this says what a person sees who draws its boxes at one threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from querybox.data.records import DetectionData, ImageRecord
from querybox.inference.detections import Detections

MATCH_IOU = 0.5


class Assignment(NamedTuple):
    """Which detection stands for which object of an image."""

    answers: Int[np.ndarray, " N"]
    """The object of its own class that each detection answers for; -1: none."""
    mistaken: Int[np.ndarray, " N"]
    """The object of another class, found by none of its own, that each detection takes for its own; -1: none."""
    ignored: Bool[np.ndarray, " N"]
    """Detections on a crowd of their class."""
    missed: Bool[np.ndarray, " G"]
    """Objects for which no detection stands at all."""
    iou: Float[np.ndarray, "N G"]
    """As `overlap` says."""

    @property
    def wrong(self) -> Bool[np.ndarray, " N"]:
        """Detections that are false alarms."""
        return (self.answers < 0) & ~self.ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Detections that score at least `threshold` against the objects, at IoU 0.5."""

    threshold: float
    """The score with the highest F1 on these data (0-1)."""
    precision: float
    """Right detections of all detections, 0-1; NaN when there is no detection."""
    recall: float
    """Objects found of all objects, 0-1; NaN when there is no object."""
    f1: float
    """Harmonic mean of the two; NaN when the data have no object."""
    confusion: Int[np.ndarray, "K K"]
    """Counts, K = C + 1: true class (row) detected as (column). The last row is background that was detected as
    something, the last column objects that nothing found."""
    image_f1: Mapping[int, float]
    """F1 of each image by its id; 1 for an empty image that is left empty."""
    assigned: Mapping[int, Assignment]
    """Which of those detections stands for which object, in each image by its id."""


def agreement(data: DetectionData, detections: Mapping[int, Detections]) -> Agreement:
    """Match the detections of every image (by id, labels of `data`) to its objects, at the threshold of the best F1.

    Matching follows COCO: best score first, each detection takes the free object of its own class with the highest
    IoU, if that is at least 0.5. Detections on a crowd region of their class are ignored.
    """
    threshold = best_threshold(data, detections)
    confusion = np.zeros((len(data.categories) + 1,) * 2, dtype=np.int64)
    image_f1, assigned = {}, {}
    for record in data.images:
        found = detections[record.id].above(threshold)
        assigned[record.id] = assign(record, found)
        counts = confusion_of(record, found, assigned[record.id], len(data.categories))
        image_f1[record.id] = f1_score(counts, empty=1.0)
        confusion += counts
    right, detected, objects = count(confusion)
    return Agreement(
        threshold=threshold,
        precision=right / detected if detected else math.nan,
        recall=right / objects if objects else math.nan,
        f1=f1_score(confusion, empty=math.nan) if objects else math.nan,
        confusion=confusion,
        image_f1=image_f1,
        assigned=assigned,
    )


def best_threshold(data: DetectionData, detections: Mapping[int, Detections]) -> float:
    """Return the score threshold with the highest F1; 0.5 when no detection is right."""
    scores, right = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for record in data.images:
        found = detections[record.id]
        answers, ignored = match(record, found, overlap(record, found))
        scores.append(found.scores.double().numpy()[~ignored])
        right.append(answers[~ignored] >= 0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    descending, hits = np.concatenate(scores)[order], np.concatenate(right)[order].cumsum()
    if not len(hits) or not hits[-1]:
        return 0.5
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + data.num_objects)
    # Equal scores fall on the same side of a threshold: only the last of them is a place to cut.
    f1[:-1][descending[:-1] == descending[1:]] = 0
    return float(descending[f1.argmax()])


def confusion_of(
    record: ImageRecord, found: Detections, assigned: Assignment, num_classes: int
) -> Int[np.ndarray, "K K"]:
    """Return the confusion matrix of one image, K = C + 1."""
    counts = np.zeros((num_classes + 1,) * 2, dtype=np.int64)
    labels = found.labels.numpy()
    right, taken, wrong = assigned.answers >= 0, assigned.mistaken >= 0, assigned.wrong
    np.add.at(counts, (labels[right], labels[right]), 1)
    np.add.at(counts, (record.labels[assigned.mistaken[taken]], labels[taken]), 1)
    np.add.at(counts[num_classes], labels[wrong & ~taken], 1)
    np.add.at(counts, (record.labels[assigned.missed], num_classes), 1)
    return counts


def assign(record: ImageRecord, found: Detections) -> Assignment:
    """Let detections answer for objects, best score first.

    Objects that no detection of their class answers for may be answered for by one of another class: a confusion.
    """
    iou = overlap(record, found)
    answers, ignored = match(record, found, iou)
    missed = ~record.crowd
    missed[answers[answers >= 0]] = False
    mistaken = np.full(len(answers), -1)
    for n in np.flatnonzero((answers < 0) & ~ignored):
        mistaken[n] = take_best(iou[n], missed)
    return Assignment(answers, mistaken, ignored, missed, iou)


def match(
    record: ImageRecord, found: Detections, iou: Float[np.ndarray, "N G"]
) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return the object that each detection answers for (-1: none), and which detections lie on a crowd."""
    labels = found.labels.numpy()
    iou = iou * (labels[:, None] == record.labels)
    free = ~record.crowd
    answers = np.full(len(labels), -1)
    for n in np.flatnonzero((iou >= MATCH_IOU).any(1)):
        answers[n] = take_best(iou[n], free)
    ignored = (answers < 0) & (iou[:, record.crowd] >= MATCH_IOU).any(1)
    return answers, ignored


def take_best(iou: Float[np.ndarray, " G"], free: Bool[np.ndarray, " G"], least: float = MATCH_IOU) -> int:
    """Mark the free object with the highest IoU as taken and return its index; -1 when none reaches `least`."""
    if not free.any():
        return -1
    best = int(np.where(free, iou, -1.0).argmax())
    if iou[best] < least:
        return -1
    free[best] = False
    return best


def overlap(record: ImageRecord, found: Detections) -> Float[np.ndarray, "N G"]:
    """Return the IoU of detections and objects; for a crowd, the part of the detection that lies in it."""
    boxes, objects = found.boxes_xyxy.double().numpy()[:, None], record.boxes_xyxy[None]
    low, high = np.maximum(boxes[..., :2], objects[..., :2]), np.minimum(boxes[..., 2:], objects[..., 2:])
    shared: Float[np.ndarray, "N G"] = (high - low).clip(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)  # [N, 1]
    both = area + (objects[..., 2:] - objects[..., :2]).prod(-1) - shared
    shared /= np.where(record.crowd, area, both).clip(min=np.finfo(float).tiny)
    return shared


def f1_score(confusion: Int[np.ndarray, "K K"], *, empty: float) -> float:
    """Return 2 x right / (detections + objects); `empty` when there are neither."""
    right, found, objects = count(confusion)
    return 2 * right / (found + objects) if found + objects else empty


def count(confusion: Int[np.ndarray, "K K"]) -> tuple[int, int, int]:
    """Return the numbers of right detections, of detections, and of objects."""
    return int(np.trace(confusion)), int(confusion[:, :-1].sum()), int(confusion[:-1].sum())
