"""Assignment of detections to objects: the best score threshold, the confusion matrix and the F1 of each image.

Average precision summarises all score thresholds; these numbers describe the detections at a single one, as a person
sees them drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from querybox.data.records import DetectionData, ImageRecord
from querybox.evaluation.overlaps import Overlaps
from querybox.inference.detections import Detections

MATCH_IOU = 0.5


class Assignment(NamedTuple):
    """Assignment of an image's detections to its objects."""

    labels: Int[np.ndarray, " N"]
    """Class of each detection."""
    matched: Int[np.ndarray, " N"]
    """The object of the same class that each detection is matched to; -1 for none."""
    confused: Int[np.ndarray, " N"]
    """The otherwise unmatched object of another class that each detection is assigned to; -1 for none."""
    ignored: Bool[np.ndarray, " N"]
    """Detections on a crowd region of their class."""
    unmatched: Bool[np.ndarray, " G"]
    """Objects that no detection is assigned to."""
    overlaps: Overlaps
    """The overlapping pairs of detections and objects."""

    @property
    def true_positives(self) -> int:
        """Number of matched pairs of a detection and an object."""
        return int((self.matched >= 0).sum())

    @property
    def false_positive(self) -> Bool[np.ndarray, " N"]:
        """Detections that are neither matched nor ignored."""
        return (self.matched < 0) & ~self.ignored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatingPoint:
    """Precision, recall, F1 and confusion matrix at one score threshold, matched at IoU 0.5."""

    threshold: float
    """The score threshold with the highest F1 on these data, 0-1."""
    precision: float
    """True positives / detections, 0-1; NaN if there are no detections."""
    recall: float
    """True positives / objects, 0-1; NaN if there are no objects."""
    f1: float
    """Harmonic mean of precision and recall, 0-1; NaN if there are no objects."""
    confusion: Int[np.ndarray, "K K"]
    """Confusion matrix, K = C + 1: rows are true classes, columns are predicted classes. The last row counts
    detections assigned to no object, the last column objects without a detection."""
    image_f1: Mapping[int, float]
    """F1 of each image by image id; 1 for an image without objects and without detections."""
    assignments: Mapping[int, Assignment]
    """Assignment of each image's detections at this threshold, by image id."""


def best_operating_point(data: DetectionData, detections: Mapping[int, Detections]) -> OperatingPoint:
    """Match detections to objects at the score threshold with the highest F1.

    Matching follows COCO: in order of score, each detection is matched to the free object of its class with the
    highest IoU, if that is at least 0.5. Detections on a crowd region of their class are ignored.

    Args:
        data: The images and their objects.
        detections: Detections of every image by image id, with the labels of `data`.
    """
    threshold = best_threshold(data, detections)
    confusion = np.zeros((len(data.categories) + 1,) * 2, dtype=np.int64)
    image_f1, assignments = {}, {}
    for record in data.images:
        kept = detections[record.id].above(threshold)
        assignment = assignments[record.id] = assign(record, kept)
        np.add.at(confusion, confusion_entries(record, assignment, len(data.categories)), 1)
        counted = int((~assignment.ignored).sum())
        image_f1[record.id] = f1_score(assignment.true_positives, counted, int((~record.crowd).sum()))
    true_positives = int(confusion.diagonal().sum())
    num_detections, num_objects = int(confusion[:, :-1].sum()), int(confusion[:-1].sum())
    return OperatingPoint(
        threshold=threshold,
        precision=true_positives / num_detections if num_detections else math.nan,
        recall=true_positives / num_objects if num_objects else math.nan,
        f1=f1_score(true_positives, num_detections, num_objects) if num_objects else math.nan,
        confusion=confusion,
        image_f1=image_f1,
        assignments=assignments,
    )


def best_threshold(data: DetectionData, detections: Mapping[int, Detections]) -> float:
    """Return the score threshold with the highest F1; 0.5 if there are no true positives."""
    all_scores, all_matched = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for record in data.images:
        candidates = detections[record.id]
        matched, ignored = match(record, candidates, Overlaps.of(record, candidates))
        all_scores.append(candidates.scores.double().numpy()[~ignored])
        all_matched.append(matched[~ignored] >= 0)
    order = np.argsort(-np.concatenate(all_scores), kind="stable")
    scores = np.concatenate(all_scores)[order]
    true_positives = np.concatenate(all_matched)[order].cumsum()
    if not len(true_positives) or not true_positives[-1]:
        return 0.5
    f1 = 2 * true_positives / (np.arange(1, len(scores) + 1) + data.num_objects)
    # A threshold cannot separate equal scores: only the last of them is a candidate.
    f1[:-1][scores[:-1] == scores[1:]] = 0
    return float(scores[f1.argmax()])


def confusion_entries(
    record: ImageRecord, assignment: Assignment, num_classes: int
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
    """Return the row and the column in the confusion matrix of each detection and each missed object of an image.

    A matrix for each image would take too long with thousands of classes.
    """
    labels = assignment.labels
    matched, confused = assignment.matched >= 0, assignment.confused >= 0
    false_positives = labels[assignment.false_positive & ~confused]
    missed = record.labels[assignment.unmatched]
    rows = (
        labels[matched],
        record.labels[assignment.confused[confused]],
        np.full_like(false_positives, num_classes),
        missed,
    )
    columns = (labels[matched], labels[confused], false_positives, np.full_like(missed, num_classes))
    return np.concatenate(rows), np.concatenate(columns)


def assign(record: ImageRecord, detections: Detections) -> Assignment:
    """Assign detections to objects, highest score first.

    Detections are matched to objects of their own class first. Each one left over is then assigned to an object of
    another class that is still unmatched, which the confusion matrix counts as a confusion of the two classes.
    """
    overlaps = Overlaps.of(record, detections)
    matched, ignored = match(record, detections, overlaps)
    unmatched = ~record.crowd
    unmatched[matched[matched >= 0]] = False
    confused = np.full(len(matched), -1)
    left = (matched < 0) & ~ignored
    pairs = overlaps.where(left[overlaps.detection] & (overlaps.iou >= MATCH_IOU))
    for n, iou in pairs.rows(np.unique(pairs.detection)):
        confused[n] = take_best(iou, unmatched)
    return Assignment(detections.labels.numpy(), matched, confused, ignored, unmatched, overlaps)


def match(
    record: ImageRecord, detections: Detections, overlaps: Overlaps
) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return the object that each detection is matched to (-1 for none), and which detections lie on a crowd."""
    labels = detections.labels.numpy()
    same = labels[overlaps.detection] == record.labels[overlaps.object]
    pairs = overlaps.where(same & (overlaps.iou >= MATCH_IOU))
    free = ~record.crowd
    matched = np.full(len(labels), -1)
    for n, iou in pairs.rows(np.unique(pairs.detection)):
        matched[n] = take_best(iou, free)
    on_crowd = np.zeros(len(labels), dtype=bool)
    on_crowd[pairs.detection[record.crowd[pairs.object]]] = True
    return matched, (matched < 0) & on_crowd


def take_best(iou: Float[np.ndarray, " G"], free: Bool[np.ndarray, " G"], min_iou: float = MATCH_IOU) -> int:
    """Return the free object with the highest IoU and clear its entry in `free`; -1 if none reaches `min_iou`."""
    if not free.any():
        return -1
    best = int(np.where(free, iou, -1.0).argmax())
    if iou[best] < min_iou:
        return -1
    free[best] = False
    return best


def f1_score(true_positives: int, num_detections: int, num_objects: int) -> float:
    """Return 2 x true positives / (detections + objects); 1 if there are neither."""
    total = num_detections + num_objects
    return 2 * true_positives / total if total else 1.0
