"""The errors of a detector in one image: every false negative and every false positive, each with one error type.

The error types and the two IoU thresholds are those of TIDE (Bolya, Foley, Hays and Hoffman, 2020, "TIDE: A General
Toolbox for Identifying Object Detection Errors", section 2.2): 0.5 is a match, less than 0.1 is background. The
assignment is that of `querybox.evaluation.confusion`, so these counts and its confusion matrix describe the same
detections.

A **false positive** is a detection that is not matched to an object of its class. Its type is the first that applies:

1. classification: it is assigned to an unmatched object of another class, as in the confusion matrix
2. duplicate: IoU >= 0.5 with an object of its class that a higher-scoring detection is matched to
3. classification: IoU >= 0.5 with an object of another class
4. localization: IoU >= 0.1 with an object of its class
5. both: IoU >= 0.1 with an object of another class
6. background: IoU < 0.1 with every object

A **false negative** is an object without a matched detection. It has the type of the false positive that would match
it if its class, its box, or both were corrected: each false positive covers at most one object, in order of score, the
uncovered object with the highest IoU; classification errors are assigned first, then localization errors, then both.
A false negative that no false positive covers is **missed**.

Crowd regions are never false negatives and cover nothing; detections of their class on them are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from querybox.data.records import ImageRecord
from querybox.evaluation.confusion import MATCH_IOU, Assignment, take_best

FalseNegativeType = Literal["missed", "classification", "localization", "both"]
FalsePositiveType = Literal["classification", "localization", "both", "duplicate", "background"]
ABBREVIATIONS: Mapping[FalseNegativeType | FalsePositiveType, str] = MappingProxyType(
    {
        "classification": "Cls",
        "localization": "Loc",
        "both": "Both",
        "duplicate": "Dupe",
        "background": "Bkg",
        "missed": "Miss",
    }
)
"""All error types in TIDE's order, with the abbreviations that TIDE prints."""
BACKGROUND_IOU = 0.1
"""A detection with less IoU than this with every object is a background error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseNegative:
    """An object without a matched detection."""

    object: int
    """Index of the object in the image's record."""
    error_type: FalseNegativeType
    detection: int | None
    """Index of the false positive that covers the object; None if the object is missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FalsePositive:
    """A detection that is not matched to an object of its class."""

    detection: int
    """Index of the detection in the image."""
    error_type: FalsePositiveType
    object: int | None
    """Index of the object that the error type refers to; None for background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageErrors:
    """The errors in one image. `len` is their number."""

    false_negatives: tuple[FalseNegative, ...]
    """False negatives, sorted by object."""
    false_positives: tuple[FalsePositive, ...]
    """False positives, sorted by detection, highest score first."""
    true_positives: int
    """Number of matched pairs of a detection and an object."""
    ignored: int
    """Number of detections on crowd regions."""

    def __len__(self) -> int:
        return len(self.false_negatives) + len(self.false_positives)


def find_errors(record: ImageRecord, assignment: Assignment) -> ImageErrors:
    """Find the errors in one image.

    Args:
        record: The image's objects.
        assignment: Which of them its detections are assigned to.
    """
    labels, overlaps = assignment.labels, assignment.overlaps
    # Other pairs are no reason for an error.
    relevant = ~record.crowd[overlaps.object] & (overlaps.iou >= BACKGROUND_IOU)
    relevant &= (assignment.false_positive & (assignment.confused < 0))[overlaps.detection]
    overlaps = overlaps.where(relevant)
    # Error type and object of each false positive.
    types: dict[int, tuple[FalsePositiveType, int | None]] = dict.fromkeys(
        np.flatnonzero(assignment.false_positive).tolist(), ("background", None)
    )
    false_negatives: list[FalseNegative] = []
    for n in np.flatnonzero(assignment.confused >= 0).tolist():
        confused = int(assignment.confused[n])
        types[n] = "classification", confused
        false_negatives.append(FalseNegative(object=confused, error_type="classification", detection=n))
    near = np.unique(overlaps.detection)
    for n, iou in overlaps.rows(near):
        types[n] = classify_false_positive(iou, labels[n] == record.labels)
    uncovered = assignment.unmatched.copy()
    covering: tuple[Literal["localization", "both"], ...] = ("localization", "both")
    for error_type in covering:
        for n, iou in overlaps.rows(near[[types[n][0] == error_type for n in near.tolist()]]):
            same_class = labels[n] == record.labels
            eligible = iou * (same_class if error_type == "localization" else ~same_class)
            if (covered := take_best(eligible, uncovered, BACKGROUND_IOU)) >= 0:
                types[n] = error_type, covered
                false_negatives.append(FalseNegative(object=covered, error_type=error_type, detection=n))
    false_negatives += [
        FalseNegative(object=g, error_type="missed", detection=None)
        for g in np.flatnonzero(uncovered).tolist()
    ]
    return ImageErrors(
        false_negatives=tuple(sorted(false_negatives, key=lambda error: error.object)),
        false_positives=tuple(
            FalsePositive(detection=n, error_type=error_type, object=object_)
            for n, (error_type, object_) in types.items()
        ),
        true_positives=assignment.true_positives,
        ignored=int(assignment.ignored.sum()),
    )


def classify_false_positive(
    iou: Float[np.ndarray, " G"], same_class: Bool[np.ndarray, " G"]
) -> tuple[FalsePositiveType, int | None]:
    """Return the error type of a detection that is assigned to no object, and the object it refers to.

    Args:
        iou: IoU with each object.
        same_class: Which objects have the detection's class.

    Returns:
        The error type, and the index of the object with the highest IoU that it refers to; None for background.
    """
    rules: tuple[tuple[float, bool, FalsePositiveType], ...] = (
        (MATCH_IOU, True, "duplicate"),
        (MATCH_IOU, False, "classification"),
        (BACKGROUND_IOU, True, "localization"),
        (BACKGROUND_IOU, False, "both"),
    )
    for min_iou, same, error_type in rules:
        eligible = np.where(same_class == same, iou, 0.0)
        if eligible.max(initial=0.0) >= min_iou:
            return error_type, int(eligible.argmax())
    return "background", None
