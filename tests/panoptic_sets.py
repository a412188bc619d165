"""Writes COCO panoptic datasets of random segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dataset_writers import write_json
from jaxtyping import Int64
from PIL import Image

from querybox.structures import Category

CATEGORIES = (
    Category(id=3, name="cell"),
    Category(id=7, name="fibre"),
    Category(id=8, name="glass", stuff=True),
    Category(id=20, name="tissue", stuff=True),
)
Segment = tuple[int, bool]  # category id, crowd


def draw_segments(rng: np.random.Generator, size: tuple[int, int], count: int) -> Int64[np.ndarray, "H W"]:
    """Divide an image into `count` regions with the numbers 1, 2 ..., and void (0): those nearest to random points."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    points = rng.uniform(0, 1, (count + 1, 2)) * size
    distances = [(rows - top) ** 2 + (columns - left) ** 2 for top, left in points]
    return np.argmin(distances, 0).astype(np.int64)


def choose_segments(
    rng: np.random.Generator, drawn: Int64[np.ndarray, "H W"], *, crowds: bool = False
) -> tuple[Int64[np.ndarray, "H W"], dict[int, Segment]]:
    """Give the regions of an image random numbers and classes; regions of one class of stuff are one segment."""
    segments: dict[int, Segment] = {}
    ids = np.zeros_like(drawn)
    of_stuff: dict[int, int] = {}
    for region in np.unique(drawn[drawn > 0]).tolist():
        category = CATEGORIES[int(rng.integers(0, len(CATEGORIES)))]
        number = int(rng.integers(1, 2**24))
        if category.stuff:
            number = of_stuff.setdefault(category.id, number)
        segments[number] = (category.id, crowds and not category.stuff and rng.random() < 0.3)
        ids[drawn == region] = number
    return ids, segments


def write_png(path: Path, ids: Int64[np.ndarray, "H W"]) -> None:
    """Write the PNG of segments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


def write_panoptic(
    root: Path, split: str, images: Sequence[tuple[Int64[np.ndarray, "H W"], Mapping[int, Segment]]]
) -> Path:
    """Write a dataset with the layout of COCO's, and return its JSON file."""
    annotations: list[dict[str, Any]] = []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number, (ids, segments) in enumerate(images, start=1):
        Image.new("RGB", (ids.shape[1], ids.shape[0]), (90, 40 * number % 256, 20)).save(
            root / split / f"{number}.png"
        )
        write_png(root / "annotations" / f"panoptic_{split}" / f"{number}.png", ids)
        infos = []
        for segment, (category, crowd) in segments.items():
            rows, columns = np.nonzero(ids == segment)
            left, top = int(columns.min()), int(rows.min())
            bbox = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
            values = {"id": segment, "category_id": category, "iscrowd": int(crowd), "area": len(rows)}
            infos.append({**values, "bbox": bbox})
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    return write_json(
        root / "annotations" / f"panoptic_{split}.json",
        {
            "images": [
                {"id": number, "file_name": f"{number}.png", "width": ids.shape[1], "height": ids.shape[0]}
                for number, (ids, _) in enumerate(images, start=1)
            ],
            "annotations": annotations,
            "categories": [
                {"id": one.id, "name": one.name, "isthing": int(not one.stuff), "supercategory": "all"}
                for one in CATEGORIES
            ],
        },
    )
