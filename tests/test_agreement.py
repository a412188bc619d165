from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from querybox.agreement import agreement
from querybox.data.records import DetectionData, ImageRecord
from querybox.detections import Detections
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


def test_counts_what_is_taken_for_what() -> None:
    data = data_of(image(1, (0, LEFT, False), (1, RIGHT, False), (1, CORNER, False)))
    result = agreement(
        data, {1: found((0.75, 0, LEFT), (0.75, 0, RIGHT), (0.75, 1, [60.0, 60.0, 90.0, 90.0]))}
    )
    #       as cat, as dog, not found
    expected = [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert result.confusion.tolist() == expected
    assert (result.precision, result.recall, result.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_own_class_goes_before_another_class() -> None:
    """A better scored box of another class does not take the object from one of its own."""
    data = data_of(image(1, (0, LEFT, False)))
    result = agreement(data, {1: found((0.75, 1, LEFT), (0.5, 0, LEFT))})
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_each_object_is_found_once_and_by_the_best_score() -> None:
    data = data_of(image(1, (0, LEFT, False)))
    shifted = [2.0, 0.0, 42.0, 40.0]
    result = agreement(data, {1: found((0.75, 0, shifted), (0.75, 0, LEFT))})
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_threshold_has_the_best_f1() -> None:
    data = data_of(image(1, (0, LEFT, False), (0, RIGHT, False)), image(2))
    detections = {
        1: found((0.875, 0, LEFT), (0.5, 0, RIGHT), (0.25, 0, CORNER)),
        2: found((0.625, 1, LEFT), (0.125, 1, LEFT)),
    }
    # F1 from the best score down: 2/3, 2/4, 4/5, 4/6, 4/7
    result = agreement(data, detections)
    assert result.threshold == 0.5
    assert result.f1 == pytest.approx(4 / 5)
    assert result.image_f1 == pytest.approx({1: 1.0, 2: 0.0})


def test_threshold_does_not_cut_through_equal_scores() -> None:
    data = data_of(image(1, (0, LEFT, False)))
    ties = found((0.5, 0, LEFT), (0.5, 0, CORNER), (0.5, 0, RIGHT))
    result = agreement(data, {1: ties})
    assert result.threshold == 0.5
    assert result.f1 == pytest.approx(2 / 4)


def test_detections_on_a_crowd_of_their_class_are_ignored() -> None:
    data = data_of(image(1, (0, [0.0, 0.0, 90.0, 90.0], True), (0, LEFT, False)))
    inside, inside_too = (0.5, 0, [10.0, 50.0, 20.0, 60.0]), (0.5, 0, [70.0, 70.0, 80.0, 80.0])
    result = agreement(data, {1: found((0.75, 0, LEFT), inside, inside_too, (0.5, 1, CORNER))})
    assert result.confusion[:, 0].tolist() == [1, 0, 0]
    assert result.confusion.sum() == 1 + (result.threshold <= 0.5)


def test_empty_images() -> None:
    data = data_of(image(1), image(2))
    result = agreement(data, {1: found(), 2: found((0.75, 0, LEFT))})
    assert result.image_f1[1] == 1.0
    assert math.isnan(result.f1)
    assert math.isnan(result.recall)
    assert result.threshold == 0.5


def test_nothing_found() -> None:
    result = agreement(data_of(image(1, (0, LEFT, False))), {1: found()})
    assert math.isnan(result.precision)
    assert (result.recall, result.f1) == (0.0, 0.0)
    assert result.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
