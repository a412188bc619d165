"""Masks of objects and of detections to evaluate, and what pycocotools computes of them."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from querybox.data import DetectionData, ImageRecord
from querybox.inference.detections import Detections
from querybox.masks import Rle
from querybox.polygons import Polygons
from querybox.structures import Category

SIDE = 120
CATEGORIES = tuple(Category(id=number, name=str(number)) for number in (3, 7))


def blob(rng: np.random.Generator, center: np.ndarray, radius: float) -> list[float]:
    angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * radius + center).round(2).ravel().tolist()


def problem(seed: int) -> tuple[DetectionData, dict[int, Detections]]:
    """Make images of polygons, of a few crowd regions, and of detections that are similar or not."""
    rng = np.random.default_rng(seed)
    images, detections = [], {}
    for image_id in rng.permutation(50)[:12].tolist():
        count = int(rng.integers(0, 8))
        centers, radii = rng.uniform(10, SIDE - 10, (count, 2)), np.exp(rng.uniform(1.5, 4.2, count))
        polygons = [blob(rng, *one) for one in zip(centers, radii, strict=True)]
        masks = [Polygons.of([polygon]) for polygon in polygons]
        images.append(
            ImageRecord(
                id=image_id,
                path=Path(f"{image_id}.jpg"),
                width=SIDE,
                height=SIDE,
                boxes_xyxy=np.array([one.box_xyxy for one in masks]).reshape(-1, 4),
                labels=rng.integers(0, 2, count),
                crowd=rng.random(count) < 0.15,
                areas=np.exp(rng.uniform(3, 11, count)),
                masks=masks,
            )
        )
        guesses = [
            blob(rng, center + rng.normal(0, 2, 2), radius * rng.uniform(0.9, 1.1))
            for center, radius in zip(centers.repeat(3, 0), radii.repeat(3), strict=True)
        ]
        scores = np.sort(rng.integers(1, 9, len(guesses)) / 8)[::-1].copy()  # many are equal
        detections[image_id] = Detections(
            boxes_xyxy=torch.zeros(len(guesses), 4),
            scores=torch.from_numpy(scores),
            labels=torch.from_numpy(rng.integers(0, 2, len(guesses))),
            categories=CATEGORIES,
            size=(SIDE, SIDE),
            masks=tuple(Rle.of_polygons(Polygons.of([one]), (SIDE, SIDE)) for one in guesses),
        )
    return DetectionData(source=Path("made"), categories=CATEGORIES, images=tuple(images)), detections


def by_pycocotools(data: DetectionData, detections: dict[int, Detections]) -> tuple[list[float], np.ndarray]:
    """Return the 12 numbers, and precision by IoU, recall and category."""
    annotations: list[dict[str, Any]] = [
        {
            "image_id": image.id,
            "category_id": CATEGORIES[label].id,
            "segmentation": mask.to_coco() if mask else None,
            "area": area,
            "bbox": [0, 0, 1, 1],
            "iscrowd": int(crowd),
        }
        for image in data.images
        for mask, label, area, crowd in zip(
            image.masks or (), image.labels, image.areas, image.crowd, strict=True
        )
    ]
    results = [one for image_id, found in detections.items() for one in found.to_coco(image_id)]
    for one in results:
        del one["bbox"]  # of which it would take the area
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image.id, "width": SIDE, "height": SIDE} for image in data.images],
            "categories": [{"id": one.id, "name": one.name} for one in CATEGORIES],
            "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        }
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    stats = [math.nan if value == -1 else value for value in evaluator.stats.tolist()]
    return stats, np.where(precision == -1, np.nan, precision)
