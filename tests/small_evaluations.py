"""Images, objects and detections to evaluate, small enough to be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from querybox.data.records import DetectionData, ImageRecord
from querybox.inference.detections import Detections
from querybox.structures import Category

CATEGORIES = (Category(id=1, name="cat"), Category(id=2, name="dog"))
Row = tuple[float, int, list[float]]  # score, label, box


def image(image_id: int, *objects: tuple[int, list[float], bool]) -> ImageRecord:
    """Make a record of (label, box, crowd)."""
    boxes = np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=100,
        height=100,
        boxes_xyxy=boxes,
        labels=np.array([label for label, _, _ in objects], dtype=np.int64),
        crowd=np.array([crowd for _, _, crowd in objects], dtype=bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
    )


def data_of(*images: ImageRecord) -> DetectionData:
    return DetectionData(source=Path("data"), categories=CATEGORIES, images=images)


def found(*rows: Row) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([box for _, _, box in rows], dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor([score for score, _, _ in rows], dtype=torch.float32),
        labels=torch.tensor([label for _, label, _ in rows], dtype=torch.long),
        categories=CATEGORIES,
        size=(100, 100),
    )


LEFT, RIGHT, CORNER = [0.0, 0.0, 40.0, 40.0], [50.0, 0.0, 90.0, 40.0], [0.0, 60.0, 30.0, 90.0]
