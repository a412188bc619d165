"""Overlapping pairs: the same as in a matrix of all pairs, however many are computed at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from querybox.data.records import ImageRecord
from querybox.evaluation.overlaps import Overlaps, pairwise_iou
from querybox.inference.detections import Detections
from querybox.structures import Category


def corners(random: np.random.Generator, count: int) -> np.ndarray:
    low = random.uniform(0, 180, (count, 2))
    return np.concatenate([low, low + random.uniform(1, 40, (count, 2))], 1)


@pytest.mark.parametrize("pairs", [1, 100, 2**20])
@pytest.mark.parametrize(("found", "objects"), [(60, 40), (0, 5), (5, 0)])
def test_overlaps_are_those_of_the_matrix(
    pairs: int, found: int, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.evaluation.overlaps._PAIRS", pairs)
    random = np.random.default_rng(0)
    record = ImageRecord(
        id=1,
        path=Path("a.png"),
        width=220,
        height=220,
        boxes_xyxy=corners(random, objects),
        labels=np.zeros(objects, dtype=np.int64),
        crowd=random.random(objects) < 0.3,
        areas=np.ones(objects),
    )
    detections = Detections(
        boxes_xyxy=torch.from_numpy(corners(random, found)).float(),
        scores=torch.linspace(1, 0.1, found),
        labels=torch.zeros(found, dtype=torch.long),
        categories=(Category(id=1, name="a"),),
        size=(220, 220),
    )
    matrix = pairwise_iou(detections.boxes_xyxy.double().numpy(), record.boxes_xyxy, record.crowd)
    overlaps = Overlaps.of(record, detections)
    rows = [iou for _, iou in overlaps.rows(np.arange(found))]
    np.testing.assert_array_equal(np.array(rows).reshape(found, objects), matrix)
    n, g = np.nonzero(matrix)
    np.testing.assert_array_equal(overlaps.detection, n)
    np.testing.assert_array_equal(overlaps.object, g)
    kept = overlaps.where(overlaps.iou >= 0.2)
    assert (kept.iou >= 0.2).all()
    assert len(kept.iou) == (matrix >= 0.2).sum()
