"""What an evaluation found: the COCO numbers, the numbers of each class, and where the detector goes wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from querybox.evaluation.confusion import Agreement
from querybox.evaluation.errors import REASONS, AlarmReason, MissReason, Mistakes
from querybox.html import metric, render
from querybox.inference.detections import Detections
from querybox.structures import Category

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers of the COCO detection challenge, in its order.

AP and AR are averages over IoU 0.50, 0.55 ... 0.95; AP50 and AP75 hold at that IoU alone. s, m, l: objects of less
than 32 x 32, 96 x 96, and more pixels. AR1, AR10, AR100: with at most that many detections an image and class.
"""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryResult:
    """How well one class is found."""

    category: Category
    objects: int
    """Objects of the class, crowds not counted."""
    AP: float
    """Mean over IoU 0.50 ... 0.95, 0-1; NaN when the data have no object of the class."""
    AP50: float
    """At IoU 0.50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Detections held against the objects of a dataset."""

    metrics: Mapping[str, float]
    """The numbers of `METRICS`, 0-1; NaN where the data have no object to measure by (COCO's -1)."""
    categories: tuple[CategoryResult, ...]
    """By label."""
    precision: Float[np.ndarray, "10 101 C"]
    """Best precision at each of `IOU_THRESHOLDS` and at least each of `RECALLS`; NaN for a class without objects."""
    agreement: Agreement
    """Confusion matrix and F1 at the score threshold that serves these data best."""
    mistakes: Mapping[int, Mistakes]
    """What is wrong at that threshold, in every image of the data by its id. Its detections are the first of the
    image's `detections`."""
    detections: Mapping[int, Detections]
    """What was evaluated, for every image of the data by its id; labels and categories are those of the data."""
    images: int
    """Images of the data, those without objects included."""
    objects: int
    """Objects, crowds not counted."""
    crowds: int
    """Crowd regions, ignored as COCO does: neither to be found nor an error to be detected."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Why other images of the data could not be read, by their ids; they do not count."""

    @property
    def misses(self) -> dict[str, int]:
        """How many objects were missed for each `MissReason`."""
        counts: Counter[str] = Counter(miss.reason for each in self.mistakes.values() for miss in each.misses)
        return {reason: counts[reason] for reason in get_args(MissReason)}

    @property
    def false_alarms(self) -> dict[str, int]:
        """How many detections are false alarms for each `AlarmReason`."""
        counts: Counter[str] = Counter(
            alarm.reason for each in self.mistakes.values() for alarm in each.false_alarms
        )
        return {reason: counts[reason] for reason in get_args(AlarmReason)}

    def category_rows(self) -> list[list[str]]:
        """Return the rows of a table: a class, how many objects it has, its AP and AP50."""
        return [
            [one.category.name, f"{one.objects:,}", metric(one.AP), metric(one.AP50)]
            for one in self.categories
        ]

    def mistake_rows(self) -> list[list[str]]:
        """Return the rows of a table: a reason, how many objects were missed for it, how many false alarms it has."""
        misses, alarms = self.misses, self.false_alarms
        totals = ["all", f"{sum(misses.values()):,}", f"{sum(alarms.values()):,}"]
        rows = [
            [name, *(f"{counts[name]:,}" if name in counts else "" for counts in (misses, alarms))]
            for name in REASONS
        ]
        return [*rows, totals]

    def _repr_html_(self) -> str:
        """Show the metrics, the classes and the errors in Jupyter."""
        return render("notebook/evaluation.html", evaluation=self)

    def to_coco(self) -> list[dict[str, Any]]:
        """Return every detection in the format of a COCO result file, with the data's own category ids."""
        return [result for image_id, found in self.detections.items() for result in found.to_coco(image_id)]

    def to_json(self, path: str | Path) -> None:
        """Write all numbers to the JSON file `path`; what could not be measured (NaN) is ``null``."""
        report = {
            "metrics": {name: or_none(value) for name, value in self.metrics.items()},
            "images": self.images,
            "objects": self.objects,
            "crowds": self.crowds,
            "unreadable": {str(image_id): reason for image_id, reason in self.unreadable.items()},
            "detections": sum(map(len, self.detections.values())),
            "categories": [
                {
                    "id": result.category.id,
                    "name": result.category.name,
                    "objects": result.objects,
                    "AP": or_none(result.AP),
                    "AP50": or_none(result.AP50),
                }
                for result in self.categories
            ],
            "agreement": {
                "threshold": self.agreement.threshold,
                "precision": or_none(self.agreement.precision),
                "recall": or_none(self.agreement.recall),
                "f1": or_none(self.agreement.f1),
                "confusion": self.agreement.confusion.tolist(),
            },
            "mistakes": {"misses": self.misses, "false_alarms": self.false_alarms},
        }
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def or_none(value: float) -> float | None:
    """Return None for NaN, which JSON cannot say."""
    return None if math.isnan(value) else value
