"""How the detections of tiles are best merged: AP on mosaics of photos of blood cells, for several ways to merge.

``python -m benchmarks.tiles`` prints the table of ``docs/guides/tiles.md``. A mosaic of 2 x 2 photos is detected in
tiles as if it were one photo of 1280 x 960 pixels; what is found in the four photos, each alone, is the limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area

from benchmarks.setup import EXAMPLE
from querybox.data import DetectionData, ImageRecord, read_dataset, read_pixels
from querybox.data.tiling import Tiling
from querybox.data.windows import Window
from querybox.detector import Detector
from querybox.evaluation.evaluate import coco_metrics
from querybox.inference.detections import Detections
from querybox.inference.merge import merge
from querybox.inference.options import Options
from querybox.inference.predict import detect_frames
from querybox.inference.sources import Frame

ROWS = COLUMNS = 2
TILES = ((480, 0.2), (480, 0.1), (640, 0.2), (320, 0.2))
"""Sides and overlaps."""


@dataclass(frozen=True)
class Mosaic:
    """Several photos in one image."""

    record: ImageRecord
    pixels: Tensor
    photos: tuple[Window, ...]
    """The part of the mosaic that each photo takes."""


@dataclass(frozen=True)
class Views:
    """The detections in parts of a mosaic."""

    windows: tuple[Window, ...]
    parts: list[Detections]
    size: tuple[int, int]

    def unmerged(self) -> Detections:
        """Return all detections in pixels of the mosaic, by score."""
        offsets = [torch.tensor([place.left, place.top] * 2) for place in self.windows]
        boxes = [part.boxes_xyxy + offset for part, offset in zip(self.parts, offsets, strict=True)]
        order = torch.cat([part.scores for part in self.parts]).argsort(descending=True, stable=True)
        return replace(
            self.parts[0],
            boxes_xyxy=torch.cat(boxes)[order],
            scores=torch.cat([part.scores for part in self.parts])[order],
            labels=torch.cat([part.labels for part in self.parts])[order],
            size=self.size,
        )


def mosaics(data: DetectionData) -> Iterator[Mosaic]:
    """Yield mosaics of photos of 640 x 480 pixels; the last photos, which do not make up a mosaic, are left out."""
    count = ROWS * COLUMNS
    for first in range(0, len(data.images) - count + 1, count):
        photos = tuple(
            Window(640 * (index % COLUMNS), 480 * (index // COLUMNS), 640, 480) for index in range(count)
        )
        records = data.images[first : first + count]
        pixels = torch.zeros(3, 480 * ROWS, 640 * COLUMNS, dtype=torch.uint8)
        for record, (left, top, width, height) in zip(records, photos, strict=True):
            pixels[:, top : top + height, left : left + width] = read_pixels(record)
        offsets = [np.array([place.left, place.top] * 2) for place in photos]
        mosaic = ImageRecord(
            id=first,
            path=Path(f"{first}.png"),
            width=640 * COLUMNS,
            height=480 * ROWS,
            boxes_xyxy=np.concatenate([r.boxes_xyxy + o for r, o in zip(records, offsets, strict=True)]),
            labels=np.concatenate([record.labels for record in records]),
            crowd=np.concatenate([record.crowd for record in records]),
            areas=np.concatenate([record.areas for record in records]),
        )
        yield Mosaic(mosaic, pixels, photos)


def detect(detector: Detector, mosaic: Mosaic, windows: Sequence[Window]) -> Views:
    """Detect objects in parts of a mosaic."""
    frames = [
        Frame(source="", pixels=mosaic.pixels[:, top : top + height, left : left + width])
        for left, top, width, height in windows
    ]
    found = detect_frames(detector.optimize(), frames, Options(threshold=0.05))
    return Views(tuple(windows), list(found), (mosaic.record.height, mosaic.record.width))


def suppressed(views: Views) -> Detections:
    """Apply class-wise non-maximum suppression at IoU 0.5."""
    every = views.unmerged()
    kept = batched_nms(every.boxes_xyxy, every.scores, every.labels, 0.5)
    return every.where(kept.sort().values)


def greedily_merged(views: Views) -> Detections:
    """Apply greedy non-maximum merging: boxes with 0.5 of the smaller one's area in common become their hull (SAHI)."""
    every = views.unmerged()
    boxes, area = every.boxes_xyxy, box_area(every.boxes_xyxy)
    corner = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    common = (torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - corner).clamp(min=0).prod(2)
    same = (common >= 0.5 * torch.minimum(area[:, None], area)) & (every.labels[:, None] == every.labels)
    free, hulls, kept = torch.ones(len(boxes), dtype=torch.bool), boxes.clone(), []
    for index in range(len(boxes)):
        if free[index]:
            group = same[index] & free
            free &= ~group
            hulls[index] = torch.cat([boxes[group, :2].amin(0), boxes[group, 2:].amax(0)])
            kept.append(index)
    return replace(every, boxes_xyxy=hulls).where(torch.tensor(kept))


MERGES: dict[str, Callable[[Views], Detections]] = {
    "not merged": Views.unmerged,
    "NMS, IoU 0.5": suppressed,
    "greedy NMM, IoS 0.5": greedily_merged,
    "querybox": lambda views: merge(views.parts, views.windows, views.size),
    "querybox, without the whole image": lambda views: merge(
        [views.parts[0].above(1.0), *views.parts[1:]], views.windows, views.size
    ),
}


def report(name: str, data: DetectionData, detections: dict[int, Detections]) -> None:
    """Print a row of the table."""
    result = coco_metrics(data, detections)
    kinds = [error.error_type for errors in result.errors.values() for error in errors.false_positives]
    point = result.operating_point
    metrics = " | ".join(f"{result.metrics[metric]:.3f}" for metric in ("AP", "AP50", "AP75"))
    print(f"| {name} | {metrics} | {point.f1:.3f} | {kinds.count('duplicate')} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    data = read_dataset(EXAMPLE, arguments.split)
    detector = Detector.load(EXAMPLE / "weights.safetensors")
    every = list(mosaics(data))
    data = replace(data, images=tuple(mosaic.record for mosaic in every))
    print("| | AP | AP50 | AP75 | F1 | duplicates |\n|---|---|---|---|---|---|")
    alone = {one.record.id: detect(detector, one, one.photos).unmerged() for one in every}
    report("every photo alone", data, alone)
    whole = {one.record.id: detect(detector, one, [Window.of(one.pixels)]).parts[0] for one in every}
    report("the mosaic, without tiles", data, whole)
    for side, overlap in TILES:
        windows = Tiling(side, overlap).windows((480 * ROWS, 640 * COLUMNS))
        views = {one.record.id: detect(detector, one, windows) for one in every}
        for name, merging in MERGES.items():
            found = {key: merging(view) for key, view in views.items()}
            report(f"tile {side}, overlap {overlap}: {name}", data, found)


if __name__ == "__main__":
    main()
