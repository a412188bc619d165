"""What is wrong in an image: every object that was missed and every false alarm, each with one reason.

The reasons and the two thresholds are those of TIDE (Bolya, Foley, Hays and Hoffman, 2020, "TIDE: A General Toolbox for
Identifying Object Detection Errors", section 2.2): a detection finds what it overlaps by an IoU of 0.5, and has nothing
to do with what it overlaps by less than 0.1. The assignment is that of `querybox.evaluation.confusion`, so that these
counts and its confusion matrix are about the same detections.

A **false alarm** is a detection that answers for no object of its class. Its reason is the first that applies:

1. wrong class: it stands for a missed object of another class, as in the confusion matrix
2. duplicate: it overlaps an object of its class by 0.5, which a better one answers for already
3. wrong class: it overlaps an object of another class by 0.5
4. loose box: it overlaps an object of its class by 0.1
5. wrong class and loose box: it overlaps an object of another class by 0.1
6. background: it overlaps no object by 0.1

A **missed** object has the reason of the false alarm that would have found it with another class or a better box, or
both. Each false alarm excuses one object at most, best score first, the free object with the highest IoU; before loose
boxes come wrong classes, after them those that are both. What is left was not found.

Crowd regions excuse nothing and cannot be missed; detections on one of their class are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from querybox.data.records import ImageRecord
from querybox.evaluation.confusion import MATCH_IOU, Assignment, take_best
from querybox.inference.detections import Detections

MissReason = Literal["not found", "wrong class", "loose box", "wrong class and loose box"]
AlarmReason = Literal["wrong class", "loose box", "wrong class and loose box", "duplicate", "background"]
REASONS: tuple[MissReason | AlarmReason, ...] = (
    *get_args(MissReason),
    *(reason for reason in get_args(AlarmReason) if reason not in get_args(MissReason)),
)
"""All of them, in the order in which they are shown."""
LETTERS: Mapping[MissReason | AlarmReason, str] = MappingProxyType(
    {
        "not found": "N",
        "wrong class": "C",
        "loose box": "L",
        "wrong class and loose box": "CL",
        "duplicate": "D",
        "background": "B",
    }
)
"""What stands for each in a picture."""
LEAST_IOU = 0.1
"""Below it a detection and an object have nothing to do with each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """An object that was not found as what it is."""

    object: int
    """Its place in the image's record."""
    reason: MissReason
    detection: int | None
    """The place of the false alarm that excuses it; None: not found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseAlarm:
    """A detection that answers for no object of its class."""

    detection: int
    """Its place among the detections of the image."""
    reason: AlarmReason
    object: int | None
    """The place of the object that the reason speaks of; None: background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """What is wrong in one image."""

    misses: tuple[Miss, ...]
    """By object."""
    false_alarms: tuple[FalseAlarm, ...]
    """By detection, that is, best score first."""
    right: int
    """Objects that were found, and detections that found them."""
    ignored: int
    """Detections on crowd regions."""

    def __len__(self) -> int:
        return len(self.misses) + len(self.false_alarms)


def mistakes_in(record: ImageRecord, found: Detections, assigned: Assignment) -> Mistakes:
    """Hold detections against the objects of an image.

    Args:
        record: The objects.
        found: All that counts as detected, with labels of the record.
        assigned: Which of them stands for which object.
    """
    iou = np.where(record.crowd, 0.0, assigned.iou)  # [N, G]
    own = found.labels.numpy()[:, None] == record.labels  # [N, G]
    about: dict[int, tuple[AlarmReason, int | None]] = {}  # what each false alarm is, and of which object
    misses: list[Miss] = []
    for n in np.flatnonzero(assigned.wrong).tolist():
        if (mistaken := int(assigned.mistaken[n])) >= 0:
            about[n] = "wrong class", mistaken
            misses.append(Miss(object=mistaken, reason="wrong class", detection=n))
        else:
            about[n] = reason_of(iou[n], own[n])
    missed = assigned.missed.copy()
    kinds: tuple[tuple[Literal["loose box", "wrong class and loose box"], Bool[np.ndarray, "N G"]], ...]
    kinds = (("loose box", own), ("wrong class and loose box", ~own))
    for kind, possible in kinds:
        for n in [n for n, (reason, _) in about.items() if reason == kind]:
            if (excused := take_best(iou[n] * possible[n], missed, LEAST_IOU)) >= 0:
                about[n] = kind, excused
                misses.append(Miss(object=excused, reason=kind, detection=n))
    misses += [Miss(object=g, reason="not found", detection=None) for g in np.flatnonzero(missed).tolist()]
    return Mistakes(
        misses=tuple(sorted(misses, key=lambda miss: miss.object)),
        false_alarms=tuple(
            FalseAlarm(detection=n, reason=reason, object=object_) for n, (reason, object_) in about.items()
        ),
        right=int((assigned.answers >= 0).sum()),
        ignored=int(assigned.ignored.sum()),
    )


def reason_of(iou: Float[np.ndarray, " G"], own: Bool[np.ndarray, " G"]) -> tuple[AlarmReason, int | None]:
    """Return why a detection that stands for no object is a false alarm, and the object that this speaks of.

    Args:
        iou: With each object.
        own: Which objects have its class.
    """
    kinds: tuple[tuple[float, bool, AlarmReason], ...] = (
        (MATCH_IOU, True, "duplicate"),
        (MATCH_IOU, False, "wrong class"),
        (LEAST_IOU, True, "loose box"),
        (LEAST_IOU, False, "wrong class and loose box"),
    )
    for least, same, reason in kinds:
        shared = np.where(own == same, iou, 0.0)
        if shared.max(initial=0.0) >= least:
            return reason, int(shared.argmax())
    return "background", None
