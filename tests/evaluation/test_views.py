"""The limits of COCO's metrics hold for every view of an image that was searched in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from querybox.data import DetectionData, ImageRecord
from querybox.evaluation.evaluate import coco_metrics
from querybox.inference.detections import Detections
from querybox.structures import Category


@pytest.mark.parametrize(("views", "expected"), [(1, 100), (2, 200), (3, 250)])
def test_the_limits_are_those_of_a_view(views: int, expected: int) -> None:
    """An image has 250 objects, all of which are found, but each limit holds for every one of its views."""
    boxes = [[4.0 * x, 10.0 * y, 4.0 * x + 3, 10.0 * y + 9] for x in range(25) for y in range(10)]
    corners = np.array(boxes)
    one = ImageRecord(
        id=1,
        path=Path("1.jpg"),
        width=100,
        height=100,
        boxes_xyxy=corners,
        labels=np.zeros(250, dtype=np.int64),
        crowd=np.zeros(250, dtype=bool),
        areas=(corners[:, 2:] - corners[:, :2]).prod(1),
    )
    data = DetectionData(source=Path("a.json"), categories=(Category(id=1, name="a"),), images=(one,))
    found = Detections(
        boxes_xyxy=torch.tensor(boxes),
        scores=torch.linspace(1, 0.1, 250),
        labels=torch.zeros(250, dtype=torch.long),
        categories=data.categories,
        size=(100, 100),
        views=views,
    )
    metrics = coco_metrics(data, {1: found}).metrics
    assert metrics["AR100"] == pytest.approx(expected / 250)
    assert metrics["AR1"] == pytest.approx(views / 250)
    assert metrics["AP"] == pytest.approx(np.mean(np.linspace(0, 1, 101) <= expected / 250))
