from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotation_writers import OPEN_IMAGES_COLUMNS, write_csv, write_open_images
from dataset_writers import Drawn, write_images

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError

IMAGES = [
    Drawn(name="0b.jpg", size=(40, 30), objects=[("Dog", (1, 2, 11, 22)), ("Cat", (5, 5, 40, 30))]),
    Drawn(name="0a.jpg", size=(30, 40), objects=[("Dog", (3, 4, 20, 39))]),
]


def test_boxes_are_relative_to_the_image(tmp_path: Path) -> None:
    write_open_images(tmp_path, "train", IMAGES)
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "Cat"), (2, "Dog")]
    assert [(image.path.name, image.width, image.height) for image in data.images] == [
        ("0b.jpg", 40, 30),
        ("0a.jpg", 30, 40),
    ]
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[1, 2, 11, 22], [5, 5, 40, 30]], atol=1e-9)
    assert data.images[0].labels.tolist() == [1, 0]
    assert not any(image.size_stated for image in data.images)


def test_splits_by_the_names_of_files(tmp_path: Path) -> None:
    write_open_images(tmp_path, "validation", IMAGES[1:])
    write_open_images(tmp_path, "train", IMAGES[:1])
    assert [image.path for image in read_dataset(tmp_path, "val").images] == [
        tmp_path / "validation" / "0a.jpg"
    ]


def test_the_layout_of_fiftyone(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_images(tmp_path / split / "data", IMAGES)
        rows = [["0b", "xclick", "/m/1", 1, 0.25, 0.5, 0, 1, 0, 0, 0]]
        write_csv(tmp_path / split / "labels" / "detections.csv", [OPEN_IMAGES_COLUMNS, *rows])
        write_csv(tmp_path / split / "metadata" / "classes.csv", [["/m/1", "Dog"], ["/m/2", "Cat"]])
    data = read_dataset(tmp_path, "val")
    assert [image.path for image in data.images] == [tmp_path / "validation" / "data" / "0b.jpg"]
    assert data.images[0].boxes_xyxy.tolist() == [[10, 0, 20, 30]]
    assert [category.name for category in data.categories] == ["Dog"]


def test_groups_are_crowds(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    rows = [["0b", "", "/m/1", 1, 0, 0.5, 0, 0.5, 0, 0, group] for group in (1, 0, -1)]
    write_csv(tmp_path / "boxes.csv", [OPEN_IMAGES_COLUMNS, *rows])
    assert read_dataset(tmp_path).images[0].crowd.tolist() == [True, False, False]


def test_codes_without_a_name_of_their_own_are_kept(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    rows = [["0b", "", code, 1, 0, 0.5, 0, 0.5, 0, 0, 0] for code in ("/m/1", "/m/2", "/m/3", "/m/4")]
    write_csv(tmp_path / "boxes.csv", [OPEN_IMAGES_COLUMNS, *rows])
    described = [["LabelName", "DisplayName"], ["/m/1", "Dog"], ["/m/2", "Bat"], ["/m/3", "Bat"]]
    write_csv(tmp_path / "class-descriptions.csv", described)
    names = [category.name for category in read_dataset(tmp_path / "boxes.csv").categories]
    assert names == ["/m/2", "/m/3", "/m/4", "Dog"]


def test_images_that_were_not_downloaded_are_counted(tmp_path: Path) -> None:
    write_open_images(tmp_path, "train", IMAGES)
    (tmp_path / "train" / "0b.jpg").unlink()
    data = read_split(tmp_path, None)
    assert [image.path.name for image in data.images] == ["0a.jpg"]
    assert [(finding.kind, finding.count) for finding in data.findings] == [("undownloaded_image", 1)]
    (tmp_path / "train" / "0a.jpg").unlink()
    with pytest.raises(DataError, match="none of its 2 images is in"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ["0b", "", "/m/1", 1, "x", 0.5, 0, 0.5],
            r"line 2: got the box \['x', '0', '0.5', '0.5'\]; expected numbers",
        ),
        (["0b", "", "", 1, 0, 0.5, 0, 0.5], "line 2: has no LabelName"),
        (["", "", "/m/1", 1, 0, 0.5, 0, 0.5], "line 2: has no ImageID"),
    ],
)
def test_faults_of_a_row_are_errors(tmp_path: Path, row: list[object], message: str) -> None:
    write_images(tmp_path, IMAGES)
    write_csv(tmp_path / "boxes.csv", [OPEN_IMAGES_COLUMNS, row, ["0b", "", "/m/1", 1, 0, 0.5, 0, 0.5]])
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_ids_of_several_images_are_excluded(tmp_path: Path) -> None:
    write_open_images(tmp_path, "train", IMAGES)
    for folder in ("a", "b"):
        write_images(tmp_path / folder, IMAGES[1:])
    (tmp_path / "train" / "0a.jpg").unlink()
    data = read_split(tmp_path, None)
    assert [image.path.name for image in data.images] == ["0b.jpg"]
    assert data.unreadable == {"ambiguous_image": 1}
