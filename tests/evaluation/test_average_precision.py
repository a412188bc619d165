"""Pairs of detections and objects are those of a comparison of all, found without it."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float

from querybox.evaluation import average_precision
from querybox.evaluation.average_precision import (
    DetectionTable,
    Objects,
    near_objects,
    overlapping_pairs,
)
from querybox.evaluation.overlaps import pairwise_iou


def boxes(rng: np.random.Generator, count: int, sides: tuple[float, float]) -> Float[np.ndarray, "N 4"]:
    """Boxes of very different sizes in an image with these sides; many begin or end at the same pixel."""
    corners = rng.uniform(0, sides, (count, 2)).round()
    return np.concatenate([corners, corners + np.exp(rng.uniform(-3, 6, (count, 2)))], 1)


def tables(
    rng: np.random.Generator, detections: int, objects: int, sides: tuple[float, float], groups: int = 3
) -> tuple[DetectionTable, Objects]:
    found, truth = boxes(rng, detections, sides), boxes(rng, objects, sides)
    some = min(detections, objects) // 2
    found[:some] = truth[:some] + rng.integers(-1, 2, (some, 4))
    table = DetectionTable(
        group=np.sort(rng.integers(0, groups, detections)),
        boxes_xyxy=found,
        scores=np.ones(detections),
        rank=np.arange(detections),
        outside=np.zeros((4, detections), dtype=bool),
        place=np.arange(detections),
    )
    return table, Objects(
        group=np.sort(rng.integers(0, groups, objects)),
        boxes_xyxy=truth,
        ignored=np.zeros((4, objects), dtype=bool),
        crowd=rng.random(objects) < 0.2,
        place=np.arange(objects),
    )


@pytest.mark.parametrize("sides", [(300, 300), (3000, 50), (50, 3000)])
@pytest.mark.parametrize(("detections", "objects"), [(300, 200), (0, 20), (20, 0), (0, 0), (1, 1)])
def test_pairs_are_those_of_a_comparison_of_all(
    monkeypatch: pytest.MonkeyPatch, sides: tuple[float, float], detections: int, objects: int
) -> None:
    monkeypatch.setattr(average_precision, "CHUNK", 500)
    table, truth = tables(np.random.default_rng(detections), detections, objects, sides)
    iou = pairwise_iou(table.boxes_xyxy, truth.boxes_xyxy, truth.crowd)
    iou[table.group[:, None] != truth.group] = 0
    n, g = np.nonzero(iou >= 0.5)
    order = np.lexsort((g, iou[n, g], n))
    found = overlapping_pairs(table, truth)
    np.testing.assert_array_equal(found.detection, n[order])
    np.testing.assert_array_equal(found.object, g[order])
    np.testing.assert_allclose(found.iou, iou[n, g][order], rtol=1e-12)
    assert detections < 300 or len(n) > 20


def test_few_objects_of_a_large_image_are_compared() -> None:
    rng = np.random.default_rng(0)
    table, truth = tables(rng, 4000, 4000, (20_000, 20_000), groups=1)
    truth.boxes_xyxy[0] = 0, 0, 20_000, 20_000  # one large object does not make all others near
    *_, count = near_objects(table, truth)
    assert count.sum() < 4000 * 4000 / 20
