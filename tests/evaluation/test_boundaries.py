"""Boundary IoU and Boundary AP are those of a definition that is written as loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from mask_evaluations import CATEGORIES, SIDE, by_pycocotools, problem
from pycocotools.cocoeval import COCOeval

from querybox.evaluation.average_precision import Pairs
from querybox.evaluation.boundaries import band, boundary_iou, boundary_pairs
from querybox.evaluation.evaluate import coco_metrics
from querybox.evaluation.result import METRICS
from querybox.masks import Rle, mask_iou


def boundary_by_loops(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of which a pixel outside of the mask, or of the image, is within the width of the band."""
    height, width = mask.shape
    reach = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    padded = np.pad(mask, reach)
    result = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        result[y, x] = not padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1].all()
    return result


def iou_by_loops(mask: np.ndarray, other: np.ndarray) -> float:
    pixels = list(zip(boundary_by_loops(mask).ravel(), boundary_by_loops(other).ravel(), strict=True))
    union = sum(bool(a or b) for a, b in pixels)
    return sum(bool(a and b) for a, b in pixels) / union if union else 0.0


def boundary_of(mask: np.ndarray) -> np.ndarray:
    """Return the band at the size of the image."""
    found = band(Rle.of(mask))
    height, width = found.pixels.shape
    result = np.zeros_like(mask)
    result[found.top : found.top + height, found.left : found.left + width] = found.pixels
    return result


def iou_of(mask: np.ndarray, other: np.ndarray) -> float:
    return boundary_iou(band(Rle.of(mask)), band(Rle.of(other)))


def decode(segmentation: dict[str, Any]) -> np.ndarray:
    """Decode the mask of an object (a string) or of a detection (bytes)."""
    counts = segmentation["counts"]
    return Rle((SIDE, SIDE), counts if isinstance(counts, bytes) else counts.encode()).mask()


def random_mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Make a few discs and rectangles, some beyond the edge of the image, with a hole."""
    y, x = np.indices(size)
    mask = np.zeros(size, dtype=bool)
    for _ in range(3):
        center, radius = rng.uniform(0, size), rng.uniform(2, min(size) / 2)
        mask |= np.hypot(y - center[0], x - center[1]) < radius
    top, left = rng.integers(0, size)
    mask[top:, left:] ^= rng.random() < 0.5
    mask[size[0] // 2, size[1] // 2] = False
    return mask


@pytest.mark.parametrize("size", [(20, 31), (80, 60), (97, 130)])
@pytest.mark.parametrize("seed", range(4))
def test_boundaries_are_those_of_loops(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask, other = random_mask(rng, size), random_mask(rng, size)
    np.testing.assert_array_equal(boundary_of(mask), boundary_by_loops(mask))
    assert iou_of(mask, other) == pytest.approx(iou_by_loops(mask, other), abs=1e-12)


def test_boundaries_of_extreme_masks() -> None:
    empty, full = np.zeros((40, 100), dtype=bool), np.ones((40, 100), dtype=bool)
    assert not boundary_of(empty).any()
    inner = full.copy()
    inner[2:-2, 2:-2] = False  # 2 % of the diagonal are 2.15 pixels
    np.testing.assert_array_equal(boundary_of(full), inner)
    assert iou_of(empty, full) == iou_of(empty, empty) == 0
    assert iou_of(full, full) == 1
    left, right = full.copy(), full.copy()
    left[:, 30:], right[:, :60] = False, False
    assert iou_of(left, right) == 0


@pytest.mark.parametrize("seed", range(2))
def test_boundary_ap_is_that_of_pycocotools_with_the_smaller_iou(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, detections = problem(seed)
    masks = coco_metrics(data, detections).masks
    assert masks is not None
    compute_iou = COCOeval.computeIoU

    def smaller_iou(self: COCOeval, image_id: int, category_id: int) -> np.ndarray:
        ious = compute_iou(self, image_id, category_id)
        found = sorted(self._dts[image_id, category_id], key=lambda one: -one["score"])
        for n, g in np.ndindex(np.shape(ious)):
            truth = self._gts[image_id, category_id][g]
            if not truth["iscrowd"]:
                mask, other = (decode(one["segmentation"]) for one in (found[n], truth))
                ious[n, g] = min(ious[n, g], iou_by_loops(mask, other)) if ious[n, g] >= 0.5 else 0
        return ious

    monkeypatch.setattr(COCOeval, "computeIoU", smaller_iou)
    stats, precision = by_pycocotools(data, detections)
    np.testing.assert_allclose([masks.boundary_metrics[name] for name in METRICS], stats, rtol=0, atol=1e-9)
    per_class = [one.AP for one in masks.boundary_categories]
    np.testing.assert_allclose(per_class, precision.mean((0, 1)), rtol=0, atol=1e-9)
    assert 0.005 < masks.boundary_metrics["AP"] < masks.metrics["AP"]
    assert len(per_class) == len(CATEGORIES)


def test_of_objects_with_the_same_boundary_iou_the_last_one_is_matched_as_by_pycocotools() -> None:
    square = np.zeros((12, 12), dtype=bool)
    square[2:10, 2:10] = True
    first, last = square.copy(), square.copy()
    first[8:10, 6], last[6, 9:] = False, ~last[6, 9:]
    truth = [(Rle.of(mask), square.shape) for mask in (first, last)]
    crowd = np.zeros(2, dtype=bool)
    ious = mask_iou([Rle.of(square)], [mask for mask, _ in truth], crowd)[0]
    pairs = boundary_pairs(
        Pairs.of(np.zeros(2, dtype=np.int64), np.arange(2), ious), [Rle.of(square)], truth, crowd
    )
    assert ious[0] > ious[1]
    assert pairs.iou.tolist() == [pytest.approx(iou_by_loops(square, last))] * 2
    assert pairs.object.tolist() == [0, 1]
