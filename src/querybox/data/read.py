"""Reading a dataset whose format is recognised from its path."""

from __future__ import annotations

from pathlib import Path

from querybox.data.coco import coco_splits, read_coco_dataset
from querybox.data.records import DetectionData
from querybox.data.splits import pick_split
from querybox.errors import DataError


def read_dataset(path: str | Path, split: str | None = None) -> DetectionData:
    path = Path(path)
    if path.suffix.lower() == ".json":
        return read_coco_dataset(path)
    return pick_split(coco_splits(path), split, path)()
