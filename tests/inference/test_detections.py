from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from querybox.errors import MissingExtraError
from querybox.inference.detections import Detections
from querybox.structures import Category

CATEGORIES = (Category(id=7, name="cat"), Category(id=0, name="dog"))


def found(*, boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.long),
        categories=CATEGORIES,
        size=(100, 200),
    )


@pytest.fixture
def three() -> Detections:
    """Two dogs, nearly the same box, and a cat on top of them."""
    boxes = [[10.0, 20.0, 50.0, 80.0], [11.0, 20.0, 50.0, 80.0], [10.0, 20.0, 50.0, 81.0]]
    return found(boxes=boxes, scores=[0.75, 0.5, 0.25], labels=[1, 0, 1])


def test_names_and_length(three: Detections) -> None:
    assert three.names == ["dog", "cat", "dog"]
    assert len(three) == 3


def test_repr_counts_the_objects_of_each_class(three: Detections) -> None:
    assert repr(three) == "Detections(3 objects: 2 dog 0.25-0.75, 1 cat 0.50)"
    named = dataclasses.replace(three.above(0.6), source="a b.jpg")
    assert repr(named) == "Detections('a b.jpg', 1 object: 1 dog 0.75)"
    assert repr(named.above(0.8)) == "Detections('a b.jpg', 0 objects)"
    equal = found(boxes=[[0.0, 0.0, 1.0, 1.0]] * 2, scores=[0.504, 0.496], labels=[0, 0])
    assert repr(equal) == "Detections(2 objects: 2 cat 0.50)"


def test_above_keeps_scores_that_equal_the_threshold(three: Detections) -> None:
    kept = three.above(0.5)
    assert kept.scores.tolist() == [0.75, 0.5]
    assert kept.boxes_xyxy.tolist() == three.boxes_xyxy[:2].tolist()
    assert kept.names == ["dog", "cat"]
    assert kept.size == three.size
    assert len(three.above(0.0)) == 3


def test_detections_can_be_looked_for(three: Detections) -> None:
    same = dataclasses.replace(three)
    assert [same, three].index(three) == 1
    assert len({same, three}) == 2


def test_nms_takes_half_precision(three: Detections) -> None:
    half = dataclasses.replace(three, boxes_xyxy=three.boxes_xyxy.half(), scores=three.scores.half())
    assert half.nms(0.5).names == three.nms(0.5).names


def test_nms_suppresses_within_a_class_only(three: Detections) -> None:
    kept = three.nms(0.5)
    assert kept.scores.tolist() == [0.75, 0.5]
    assert len(three.nms(0.99)) == 3


def test_coco_results_are_xywh_with_the_data_s_ids(three: Detections) -> None:
    results = three.to_coco(42)
    assert results[1] == {"image_id": 42, "category_id": 7, "bbox": [11.0, 20.0, 39.0, 60.0], "score": 0.5}
    assert [result["category_id"] for result in results] == [0, 7, 0]


def test_to_supervision(three: Detections) -> None:
    other = three.to_supervision()
    np.testing.assert_array_equal(other.xyxy, three.boxes_xyxy.numpy())
    np.testing.assert_array_equal(other.class_id, [1, 0, 1])
    np.testing.assert_array_equal(other.confidence, three.scores.numpy())
    assert list(other.data["class_name"]) == ["dog", "cat", "dog"]


def test_supervision_is_an_extra(three: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'querybox\[supervision\]'"):
        three.to_supervision()


def test_nothing_found() -> None:
    nothing = found(boxes=[], scores=[], labels=[])
    assert nothing.names == []
    assert nothing.to_coco(1) == []
    assert len(nothing.nms(0.5).above(0.5)) == 0
    assert len(nothing.to_supervision()) == 0


def test_shows_itself_in_jupyter(three: Detections, tmp_path: Path) -> None:
    hostile = dataclasses.replace(
        three, categories=(Category(id=7, name="<b>cat"), CATEGORIES[1]), source=str(tmp_path / "<i>.png")
    )
    text = hostile._repr_html_()
    assert "&lt;b&gt;cat 0.50" in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert text.count("<tr>") == 1 + 3
    assert 'viewBox="0 0 200 100"' in text
    assert "<image" not in text  # the file is not there
    Image.new("RGB", (200, 100)).save(hostile.source)
    assert 'href="data:image/jpeg;base64,' in hostile._repr_html_()


def test_jupyter_gets_the_best_of_many() -> None:
    many = found(boxes=[[1.0, 2.0, 3.0, 4.0]] * 30, scores=[0.5] * 30, labels=[0] * 30)
    text = many._repr_html_()
    assert text.count("<tr>") == 1 + 20
    assert "and 10 more" in text
    assert "0 objects" in found(boxes=[], scores=[], labels=[])._repr_html_()
