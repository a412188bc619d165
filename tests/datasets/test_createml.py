from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from annotation_writers import write_createml
from dataset_writers import Drawn, write_images, write_json

from querybox.data import read_dataset
from querybox.errors import DataError

IMAGES = [
    Drawn(name="a.jpg", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.jpg", size=(30, 40)),
]


def test_boxes_are_given_by_their_centers(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    content = [
        {
            "imagefilename": "a.jpg",
            "annotation": [{"label": "dog", "coordinates": {"x": 6, "y": 12, "width": 10, "height": 20}}],
        },
        {"imagefilename": "b.jpg", "annotation": []},
    ]
    write_json(tmp_path / "labels.json", content)
    data = read_dataset(tmp_path)
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert [(image.width, image.height, image.size_stated) for image in data.images] == [
        (40, 30, False),
        (30, 40, False),
    ]
    assert len(data.images[1].labels) == 0


def test_the_layout_of_roboflow(tmp_path: Path) -> None:
    write_createml(tmp_path, "train", IMAGES[:1])
    write_createml(tmp_path, "valid", IMAGES[1:])
    train, val = (read_dataset(tmp_path, split) for split in ("train", "val"))
    assert [category.name for category in train.categories] == ["cat", "dog"]
    assert train.categories == val.categories
    assert train.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    assert [image.path for image in val.images] == [tmp_path / "valid" / "b.jpg"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, r"\[1\]: Input should be .*; expected 'image' and 'annotations'"),
        ({"image": "b.jpg"}, r"\[1\]: annotations: Field required"),
        (
            {"image": "b.jpg", "annotations": [{"label": "dog"}]},
            r"\[1\]\.annotations\[0\]: coordinates: Field req",
        ),
        (
            {"image": "b.jpg", "annotations": [{"label": " ", "coordinates": {}}]},
            r"\[1\]\.annotations\[0\]: label: String should have at least 1 character",
        ),
        (
            {"image": "b.jpg", "annotations": [{"label": "dog", "coordinates": {"x": "left"}}]},
            r"\[1\]\.annotations\[0\]: coordinates\.x: Input should be a valid number",
        ),
        (
            {"image": "b.jpg", "annotations": [{"label": "dog", "coordinates": {"x": True}}]},
            r"\[1\]\.annotations\[0\]: coordinates\.x: Input should be a number, not true or false",
        ),
        ({"image": "a.jpg", "annotations": []}, "image 'a.jpg' is listed 2 times"),
    ],
)
def test_faults_of_an_entry_are_errors(tmp_path: Path, entry: Any, message: str) -> None:
    write_images(tmp_path, IMAGES)
    write_json(tmp_path / "labels.json", [{"image": "a.jpg", "annotations": []}, entry])
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "labels.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = write_createml(tmp_path, "train", IMAGES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"createml\.json: .* at line 1 .*; expected a list of images"):
        read_dataset(tmp_path)
