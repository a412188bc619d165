"""The result of an evaluation: COCO metrics, metrics per class, confusion matrix and error types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Int

from querybox.evaluation.confusion import OperatingPoint
from querybox.evaluation.errors import ABBREVIATIONS, FalseNegativeType, FalsePositiveType, ImageErrors
from querybox.evaluation.panoptic_quality import PanopticQuality
from querybox.files import write_text
from querybox.html import metric, render
from querybox.inference.detections import Detections
from querybox.structures import Category
from querybox.text import counted, listed, or_none, to_json

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 metrics of the COCO detection challenge, in its order.

AP and AR are means over IoU thresholds 0.50, 0.55 ... 0.95; AP50 and AP75 use a single threshold. s, m, l: objects with
an area below 32 x 32, from there to 96 x 96, and above 96 x 96 pixels. AR1, AR10, AR100: recall with at most that many
detections per image and class.
"""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
JSON_KEYS = {
    "missed": "not found",
    "classification": "wrong class",
    "localization": "loose box",
    "both": "wrong class and loose box",
}
"""Error types that have an older name in ``metrics.json``."""
MAX_MATRIX = 500
"""Maximum number of rows of a confusion matrix in ``metrics.json``; of a larger one, the entries that are not 0 are
written as (row, column, count)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryResult:
    """Metrics of one class."""

    category: Category
    objects: int
    """Number of objects of the class, without crowd regions."""
    AP: float
    """Mean AP over IoU 0.50 ... 0.95, 0-1; NaN if the data have no object of the class."""
    AP50: float
    """AP at IoU 0.50, 0-1; NaN if the data have no object of the class."""

    def row(self) -> list[str]:
        """Return the cells of a table row: class name, number of objects, AP, AP50."""
        return [self.category.name, f"{self.objects:,}", metric(self.AP), metric(self.AP50)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskMetrics:
    """The metrics of masks."""

    metrics: Mapping[str, float]
    """The values of `METRICS` with the IoU of masks, 0-1; NaN where the data have no such object."""
    categories: tuple[CategoryResult, ...]
    """Metrics of each class, in order of label."""
    precision: Float[np.ndarray, "10 101 C"]
    """See `Evaluation.precision`."""
    boundary_metrics: Mapping[str, float]
    """The values of `METRICS` with the smaller of the IoU of masks and Boundary IoU (Cheng et al. 2021, Boundary AP):
    the IoU of the pixels of the masks that are within 2 % of the diagonal of the image from their outline."""
    boundary_categories: tuple[CategoryResult, ...]
    """Boundary AP of each class, in order of label."""
    images: int
    """Number of images all of whose objects have a mask; only these count."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The result of comparing detections with the objects of a dataset."""

    metrics: Mapping[str, float]
    """The values of `METRICS`, 0-1; NaN where the data have no such object (COCO's -1)."""
    categories: tuple[CategoryResult, ...]
    """Metrics of each class, in order of label."""
    precision: Float[np.ndarray, "10 101 C"]
    """Interpolated precision at each of `IOU_THRESHOLDS` and `RECALLS`; NaN for a class without objects."""
    operating_point: OperatingPoint
    """Confusion matrix and F1 at the score threshold with the best F1."""
    errors: Mapping[int, ImageErrors]
    """Errors at that threshold in every image of the data, by image id. They index the detections that score at least
    the threshold, which are the first of the image's `detections`."""
    detections: Mapping[int, Detections]
    """The evaluated detections of every image, by image id, with the labels and categories of the data."""
    images: int
    """Number of images, including those without objects."""
    objects: int
    """Number of objects, without crowd regions."""
    crowds: int
    """Number of crowd regions; as in COCO, detections on them are ignored."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Images that could not be read and are not evaluated: the reason, by image id."""
    masks: MaskMetrics | None = None
    """The metrics of masks; None if the detections or the data have none."""
    panoptic: PanopticQuality | None = None
    """The panoptic quality; None if the data are not panoptic or the detections have no masks."""

    def __repr__(self) -> str:
        """Return, for example, ``Evaluation(87 images, 1,204 objects: AP 0.616, AP50 0.902)``."""
        values = [f"{name} {metric(self.metrics[name])}" for name in ("AP", "AP50")]
        return f"Evaluation({counted(self.images, 'image')}, {counted(self.objects, 'object')}: {listed(values)})"

    @property
    def false_negatives(self) -> dict[str, int]:
        """Number of false negatives of each `FalseNegativeType`."""
        counts: Counter[str] = Counter(
            error.error_type for image in self.errors.values() for error in image.false_negatives
        )
        return {error_type: counts[error_type] for error_type in get_args(FalseNegativeType)}

    @property
    def false_positives(self) -> dict[str, int]:
        """Number of false positives of each `FalsePositiveType`."""
        counts: Counter[str] = Counter(
            error.error_type for image in self.errors.values() for error in image.false_positives
        )
        return {error_type: counts[error_type] for error_type in get_args(FalsePositiveType)}

    def category_rows(self) -> list[list[str]]:
        """Return table rows: class name, number of objects, AP, AP50."""
        return [one.row() for one in self.categories]

    def mask_category_rows(self) -> list[list[str]]:
        """Return table rows: class name, masks, AP and AP50 of masks, AP of boundaries; none without masks."""
        if self.masks is None:
            return []
        return [
            [*one.row(), metric(boundary.AP)]
            for one, boundary in zip(self.masks.categories, self.masks.boundary_categories, strict=True)
        ]

    def error_rows(self) -> list[list[str]]:
        """Return table rows: error type, number of false negatives, number of false positives; the total comes last."""
        columns = (self.false_negatives, self.false_positives)
        rows = [
            [name, *(f"{counts[name]:,}" if name in counts else "" for counts in columns)]
            for name in ABBREVIATIONS
        ]
        return [*rows, ["all", *(f"{sum(counts.values()):,}" for counts in columns)]]

    def _repr_html_(self) -> str:
        """Show the metrics, the classes and the errors in Jupyter."""
        return render("notebook/evaluation.html", evaluation=self)

    def to_coco(self) -> list[dict[str, Any]]:
        """Return all detections in the COCO results format, with the category ids of the data."""
        return [result for image_id, found in self.detections.items() for result in found.to_coco(image_id)]

    def to_json(self, path: str | Path) -> None:
        """Write all metrics to the JSON file `path`; NaN becomes ``null``."""
        report = {
            "metrics": {name: or_none(value) for name, value in self.metrics.items()},
            "images": self.images,
            "objects": self.objects,
            "crowds": self.crowds,
            "unreadable": {str(image_id): reason for image_id, reason in self.unreadable.items()},
            "detections": sum(map(len, self.detections.values())),
            "categories": json_categories(self.categories),
            "agreement": {
                "threshold": self.operating_point.threshold,
                "precision": or_none(self.operating_point.precision),
                "recall": or_none(self.operating_point.recall),
                "f1": or_none(self.operating_point.f1),
                **json_confusion(self.operating_point.confusion),
            },
            "mistakes": {
                "misses": json_counts(self.false_negatives),
                "false_alarms": json_counts(self.false_positives),
            },
        }
        if self.masks is not None:
            report["masks"] = {
                "metrics": {name: or_none(value) for name, value in self.masks.metrics.items()},
                "images": self.masks.images,
                "categories": json_categories(self.masks.categories),
                "boundary": {
                    "metrics": {name: or_none(value) for name, value in self.masks.boundary_metrics.items()},
                    "categories": json_categories(self.masks.boundary_categories),
                },
            }
        if self.panoptic is not None:
            report["panoptic"] = self.panoptic.to_json()
        text = to_json(report, indent=2)
        write_text(Path(path), text + "\n")


def json_confusion(confusion: Int[np.ndarray, "K K"]) -> dict[str, Any]:
    """Return a confusion matrix for ``metrics.json``: in full, or only its entries if it has very many classes."""
    if len(confusion) <= MAX_MATRIX:
        return {"confusion": confusion.tolist()}
    rows, columns = np.nonzero(confusion)
    entries = np.stack([rows, columns, confusion[rows, columns]], 1).tolist()
    return {"confusion": None, "confusion_entries": entries}


def json_categories(categories: Sequence[CategoryResult]) -> list[dict[str, Any]]:
    """Return the metrics of each class for ``metrics.json``."""
    return [
        {
            "id": one.category.id,
            "name": one.category.name,
            "objects": one.objects,
            "AP": or_none(one.AP),
            "AP50": or_none(one.AP50),
        }
        for one in categories
    ]


def json_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts under the keys of ``metrics.json``."""
    return {JSON_KEYS.get(error_type, error_type): count for error_type, count in counts.items()}
