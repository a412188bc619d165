"""The numbers that a diagnosis is made from, on images where they can be counted by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from querybox.data import DataSettings, DetectionData, ImageRecord
from querybox.data.findings import DataFinding
from querybox.diagnosis.facts import EvaluationFacts, SplitFacts, describe_parts
from querybox.diagnosis.offset import centers_and_sizes
from querybox.evaluation.evaluate import coco_metrics
from querybox.inference.detections import Detections
from querybox.structures import Category

CATEGORIES = (Category(id=5, name="cat"), Category(id=7, name="dog"))
FAULTY = tuple(
    DataFinding(kind=kind, file=Path("data.json"), count=count, places=())
    for kind, count in (("clipped_box", 2), ("outside_box", 1))
)
SIZES = DataSettings(image_size=50, long_side=100)  # half of the images' size
BOX = [10.0, 10.0, 50.0, 50.0]
FAR = [100.0, 20.0, 140.0, 60.0]


def record(number: int, boxes: list[list[float]], labels: list[int], crowds: int = 0) -> ImageRecord:
    return ImageRecord(
        id=number,
        path=Path(f"{number}.png"),
        width=200,
        height=100,
        boxes_xyxy=np.array(boxes).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.arange(len(labels)) >= len(labels) - crowds,
        areas=np.full(len(labels), 1600.0),
    )


def dataset(*images: ImageRecord) -> DetectionData:
    return DetectionData(source=Path("data.json"), categories=CATEGORIES, images=images, findings=FAULTY)


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.long),
        categories=CATEGORIES,
        size=(100, 200),
    )


def facts(data: DetectionData, *detections: Detections, cell: int = 8) -> EvaluationFacts:
    by_id = dict(zip((image.id for image in data.images), detections, strict=True))
    return EvaluationFacts.of(data, coco_metrics(data, by_id), SIZES, cell)


def test_a_split() -> None:
    data = dataset(
        record(1, [BOX, FAR, BOX], [0, 1, 0]), record(2, [], []), record(3, [BOX, FAR], [1, 0], crowds=1)
    )
    assert SplitFacts.of(data, SIZES, queries=2) == SplitFacts(
        images=3,
        empty_images=1,
        objects={"cat": 2, "dog": 2},
        most_objects=3,
        lost_objects=1,
        repeated_objects=1,
        faulty_boxes=3,
        dropped_boxes=1,
        median_size=20.0,  # 40 x 40 at half the size
    )
    assert (
        SplitFacts.of(data, SIZES, queries=2).faulty_fraction == 3 / 5
    )  # four are left, of which two are clipped


def test_objects_are_followed_whatever_the_class_of_their_detection() -> None:
    data = dataset(record(1, [BOX, FAR], [0, 1]), record(2, [BOX], [0]), record(3, [FAR], [0]))
    evaluation = facts(
        data,
        found([BOX, BOX, [100, 20, 140, 50]], [0.9, 0.8, 0.2], [1, 0, 1]),
        found([[10, 10, 30, 50]], [0.6], [0]),
        found([], [], []),
        cell=21,
    )
    cat, dog = evaluation.classes
    assert (cat.name, cat.objects, cat.located, cat.right) == ("cat", 3, 2, 1)
    assert (cat.taken_for, cat.taken) == ("dog", 1)
    assert (dog.objects, dog.located, dog.right, dog.taken_for, dog.taken) == (1, 1, 1, None, 0)
    assert (cat.tiny, cat.tiny_located, dog.tiny) == (3, 2, 1)
    assert evaluation.best_iou == pytest.approx((1 + 0.75 + 0.5 + 0) / 4)
    assert evaluation.near == 0.75
    assert evaluation.top_score == pytest.approx((0.9 + 0.6 + 0) / 3)


def test_repetitions_are_counted_among_confident_detections_of_a_class() -> None:
    data = dataset(record(1, [BOX], [0]), record(2, [FAR], [0]))
    twice = facts(
        data,
        found(
            [BOX, BOX, BOX, BOX], [0.9, 0.8, 0.7, 0.1], [0, 0, 1, 0]
        ),  # one repeats, one is of another class
        found([BOX, FAR], [0.8, 0.7], [0, 0]),
    )
    assert twice.confident == 2.5
    assert twice.repeated == pytest.approx(1 / 5)
    assert twice.AP50_once > twice.AP50


def test_sameness_compares_neighbours_in_shares_of_the_image() -> None:
    data = dataset(record(1, [BOX], [0]), record(2, [BOX], [0]))
    same = found([BOX, FAR], [0.9, 0.8], [0, 0])
    assert facts(data, same, same).sameness == 1
    assert facts(data, same, found([[60.0, 10, 100, 50]], [0.9], [0])).sameness == 0
    assert facts(dataset(record(1, [BOX], [0])), same).sameness is None
    assert facts(data, found([[5.0, 5, 5, 5]], [0.9], [0]), same).sameness == 0  # no extent, no IoU


def test_boxes_are_compared_with_those_of_another_image_in_shares_of_its_size() -> None:
    small = ImageRecord(
        id=2,
        path=Path("2.png"),
        width=100,
        height=50,
        boxes_xyxy=np.array([FAR]) / 2,
        labels=np.array([1]),
        crowd=np.zeros(1, dtype=bool),
        areas=np.array([400.0]),
    )
    narrow = dataclasses.replace(found([[5.0, 5, 25, 15]], [0.9], [0]), size=(50, 100))
    evaluation = facts(dataset(record(1, [BOX], [0]), small), found([BOX], [0.9], [0]), narrow)
    assert evaluation.best_iou == pytest.approx((1 + 0) / 2)
    assert evaluation.other_iou == pytest.approx((0.5 + 0) / 2)
    assert facts(dataset(record(1, [BOX], [0])), found([BOX], [0.9], [0])).other_iou is None


def test_parts_and_how_large_their_weights_are() -> None:
    detector = nn.Module()
    detector.neck = nn.Linear(4, 2)
    detector.encoder = nn.Identity()
    detector.decoder = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    nn.init.constant_(detector.neck.weight, -0.5)
    parts = describe_parts(detector)
    assert set(parts) == {"neck", "decoder"}
    assert (parts["neck"].parameters, parts["neck"].trained, parts["neck"].weight_size) == (10, 10, 0.5)
    assert (parts["decoder"].trained, parts["decoder"].weight_size) == (0, None)


def crowded(shift: tuple[float, float], scale: float, *, absent: int = 0) -> tuple[DetectionData, Detections]:
    """Nine objects in each of three images, and detections that are shifted in pixels and scaled around (0, 0)."""
    corners = np.array([[x, y, x + 20, y + 15] for x in (5.0, 60, 120) for y in (3.0, 30, 60)])
    corners += np.arange(36).reshape(9, 4) % [7, 5, 3, 4]  # of different sizes
    images = [record(number, corners[absent:].tolist(), [0] * (9 - absent)) for number in (1, 2, 3)]
    detections = found(((corners + np.tile(shift, 2)) * scale).tolist(), [0.9] * 9, [0] * 9)
    return dataset(*images), detections


@pytest.mark.parametrize(
    ("shift", "scale", "unit", "expected"),
    [
        ((7, -3), 1, "pixel", (7, -3)),
        ((0, 0), 0.9, "position", (-0.1, -0.1)),
        ((0, 0), 1.1, "position", (0.1, 0.1)),
    ],
)
def test_an_offset_of_all_boxes(
    shift: tuple[float, float], scale: float, unit: str, expected: tuple[float, float]
) -> None:
    data, detections = crowded(shift, scale)
    evaluation = facts(data, detections, detections, detections)
    assert evaluation.offset is not None
    assert evaluation.offset.unit == unit
    assert evaluation.offset.shift == pytest.approx(expected, abs=1e-5)
    assert evaluation.offset.ratio == pytest.approx((scale, scale), abs=1e-5)
    assert evaluation.offset.consistent == 1
    assert evaluation.AP is not None
    assert evaluation.AP < evaluation.offset.AP == 1


def test_an_offset_in_sizes_of_the_objects() -> None:
    data, right = crowded((0, 0), 1)
    center, size = centers_and_sizes(right.boxes_xyxy.double().numpy())
    center += size * [0.5, 0]  # as where corners are given for centers
    size *= 1.25
    boxes = np.concatenate([center - size / 2, center + size / 2], 1)
    shifted = dataclasses.replace(right, boxes_xyxy=torch.from_numpy(boxes).float())
    offset = facts(data, shifted, shifted, shifted).offset
    assert offset is not None
    assert offset.unit == "size"
    assert offset.shift == pytest.approx((0.5, 0), abs=1e-5)
    assert offset.ratio == pytest.approx((1.25, 1.25), abs=1e-5)


def test_boxes_that_are_right_few_or_differ_in_all_directions_have_no_offset() -> None:
    data, right = crowded((0, 0), 1)
    assert facts(data, right, right, right).offset is None
    shifted = crowded((7, -3), 1)[1]
    assert facts(data, right, shifted, crowded((-7, 3), 1)[1]).offset is None
    few = dataset(*data.images[:2])
    assert facts(few, shifted, shifted).offset is None


def test_confident_detections_in_the_background_are_those_of_images_with_objects() -> None:
    data, detections = crowded((0, 0), 1, absent=3)
    evaluation = facts(dataset(*data.images, record(4, [], [])), *[detections] * 4)
    assert (evaluation.background, evaluation.covered) == (3, 1)
    assert facts(data, *[found([], [], [])] * 3).covered == 0
