"""Two images with three boxes, and what must be found in every layout of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dataset_writers import Drawn

from querybox.data.read import find_splits
from querybox.data.records import DetectionData

IMAGES = [
    Drawn(name="a.png", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.png", size=(30, 40), objects=[("cat", (3, 4, 20, 30))]),
]
NAMES = ["cat", "dog"]
A_BOXES, B_BOXES = [[1, 2, 11, 22], [5, 5, 40, 30]], [[3, 4, 20, 30]]


def splits(path: Path) -> dict[str, DetectionData]:
    return {name: read() for name, read in find_splits(path).items()}


def kinds(data: DetectionData) -> dict[str, int]:
    return {finding.kind: finding.count for finding in data.findings}


def require_both(data: DetectionData, kinds_found: dict[str, int] | None = None) -> None:
    assert kinds(data) == (kinds_found or {})
    assert [image.path.name for image in data.images] == ["a.png", "b.png"]
    for image, boxes in zip(data.images, [A_BOXES, B_BOXES], strict=True):
        np.testing.assert_allclose(image.boxes_xyxy, boxes, atol=0.02)
    assert [[data.categories[label].name for label in image.labels] for image in data.images] == [
        ["dog", "cat"],
        ["cat"],
    ]
