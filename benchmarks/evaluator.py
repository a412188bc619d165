"""COCO metrics of a whole validation set."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.goals import faster
from benchmarks.measure import Row, Side, Work
from benchmarks.setup import Setup
from querybox.data.records import DetectionData, ImageRecord
from querybox.evaluation.average_precision import average_precision
from querybox.evaluation.evaluate import coco_metrics
from querybox.evaluation.result import METRICS
from querybox.inference.detections import Detections
from querybox.structures import Category

WHOLE, NUMBERS, PYCOCOTOOLS = "querybox evaluation", "querybox metrics alone", "pycocotools"
IMAGES, DETECTIONS, CLASSES, OBJECTS = 5000, 100, 80, 7
WIDTH, HEIGHT = 640, 480
CATEGORIES = tuple(Category(id=label + 1, name=str(label)) for label in range(CLASSES))


def rows(setup: Setup) -> Iterator[Row]:
    """Yield the row.

    querybox's evaluation also computes the precision of each class and the confusion matrix. All sides start from data
    in memory; pycocotools gets lists of dictionaries, whose creation is not timed.
    """
    images = setup.count(IMAGES)
    yield Row(
        name="evaluator",
        title=f"COCO metrics, {IMAGES:,} images of {DETECTIONS} detections and {OBJECTS} objects, {CLASSES} classes",
        sides=[
            Side(name=WHOLE, build=lambda: whole(images)),
            Side(name=NUMBERS, build=lambda: numbers(images), tolerance=1e-9),
            Side(name=PYCOCOTOOLS, build=lambda: pycocotools(images), tolerance=1e-9),
        ],
        difference=lambda a, b: float(np.abs(np.subtract(a, b)).max()),
        goals=[faster([WHOLE], PYCOCOTOOLS, 8.0)],
        rounds=(1, 5),
        seconds=setup.seconds(40),
    )


@cache
def task(images: int) -> tuple[DetectionData, dict[int, Detections]]:
    """Return random objects and detections; a quarter of the detections are near an object."""
    random = np.random.default_rng(0)
    records, found = [], {}
    for image_id in range(1, images + 1):
        boxes, labels = random_boxes(random, OBJECTS), random.integers(CLASSES, size=OBJECTS)
        records.append(
            ImageRecord(
                id=image_id,
                path=Path(f"{image_id}.jpg"),
                width=WIDTH,
                height=HEIGHT,
                boxes_xyxy=boxes,
                labels=labels,
                crowd=np.zeros(OBJECTS, dtype=bool),
                areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            )
        )
        guesses = random_boxes(random, DETECTIONS)
        guessed = random.integers(CLASSES, size=DETECTIONS)
        near = random.random(DETECTIONS) < 0.25
        source = random.integers(OBJECTS, size=DETECTIONS)
        guesses[near] = boxes[source[near]] + random.normal(scale=6, size=(near.sum(), 4))
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        guessed[near] = labels[source[near]]
        scores = np.sort(random.random(DETECTIONS) * (0.5 + 0.5 * near))[::-1]
        found[image_id] = Detections(
            boxes_xyxy=torch.from_numpy(guesses).float(),
            scores=torch.from_numpy(scores.copy()).float(),
            labels=torch.from_numpy(guessed),
            categories=CATEGORIES,
            size=(HEIGHT, WIDTH),
        )
    data = DetectionData(source=Path("random"), categories=CATEGORIES, images=tuple(records))
    return data, found


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Return random boxes within the image, with sizes distributed as in COCO, xyxy in pixels."""
    size = np.exp(random.uniform(np.log(8), np.log(400), (count, 2)))
    low = random.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size).clip(0)
    return np.concatenate([low, low + size], axis=1)


def whole(images: int) -> Work:
    """Return a function that computes everything `querybox.evaluate` does after detection."""
    data, found = task(images)

    def work() -> list[float]:
        metrics = coco_metrics(data, found).metrics
        return [metrics[name] for name in METRICS]

    return work


def numbers(images: int) -> Work:
    """Return a function that computes only what pycocotools does."""
    data, found = task(images)

    def work() -> list[float]:
        metrics, _ = average_precision(data, found)
        return [metrics[name] for name in METRICS]

    return work


def pycocotools(images: int) -> Work:
    """Return a function that computes the metrics with pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data, found = task(images)
    truth = coco_file(data)
    results = [result for image_id, one in found.items() for result in one.to_coco(image_id)]

    def work() -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            ours = COCO()
            ours.dataset = truth
            ours.createIndex()
            evaluator = COCOeval(ours, ours.loadRes([result.copy() for result in results]), "bbox")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return [float(value) for value in evaluator.stats]

    return work


def coco_file(data: DetectionData) -> dict[str, Any]:
    """Return `data` as the content of a COCO annotation file."""
    annotations: list[dict[str, Any]] = []
    for image in data.images:
        for (left, top, right, bottom), label, area in zip(
            image.boxes_xyxy.tolist(), image.labels.tolist(), image.areas.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": data.categories[label].id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [{"id": image.id, "width": image.width, "height": image.height} for image in data.images],
        "categories": [{"id": category.id, "name": category.name} for category in data.categories],
        "annotations": annotations,
    }
