from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from annotation_writers import TWO_IMAGES, assert_two_images, labelme, labelme_shape, write_labelme
from dataset_writers import Drawn, write_images, write_json

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError


def write_shapes(root: Path, shapes: list[dict[str, Any]]) -> None:
    write_images(root, TWO_IMAGES[:1])
    write_json(root / "a.json", labelme(TWO_IMAGES[0], shapes))


def test_files_beside_the_images(tmp_path: Path) -> None:
    write_labelme(tmp_path, ".", TWO_IMAGES)
    assert_two_images(read_dataset(tmp_path))


def test_folders_are_splits(tmp_path: Path) -> None:
    write_labelme(tmp_path, "train", TWO_IMAGES[:1])
    write_labelme(tmp_path, "val", TWO_IMAGES[1:])
    train, val = (read_dataset(tmp_path, split) for split in ("train", "val"))
    assert train.categories == val.categories
    assert [image.path for image in train.images] == [tmp_path / "train" / "a.jpg"]
    assert [image.path for image in val.images] == [tmp_path / "val" / "b.jpg"]


def test_files_in_their_own_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "images", TWO_IMAGES)
    for image, path in zip(TWO_IMAGES, ("../images/a.jpg", "C:\\photos\\b.jpg"), strict=True):
        write_json(tmp_path / "annotations" / f"{image.name}.json", {**labelme(image, []), "imagePath": path})
    assert [image.path for image in read_dataset(tmp_path).images] == [
        tmp_path / "images" / "a.jpg",
        tmp_path / "images" / "b.jpg",
    ]


def test_equal_names_in_several_folders(tmp_path: Path) -> None:
    for folder, box in (("cam1", (1, 2, 11, 22)), ("cam2", (3, 4, 13, 24))):
        write_labelme(tmp_path, folder, [Drawn(name="1.jpg", size=(40, 30), objects=[("dog", box)])])
    images = read_dataset(tmp_path).images
    assert [image.path for image in images] == [tmp_path / "cam1" / "1.jpg", tmp_path / "cam2" / "1.jpg"]
    assert [image.boxes_xyxy.tolist() for image in images] == [[[1, 2, 11, 22]], [[3, 4, 13, 24]]]


def test_a_renamed_image_is_found_by_the_name_of_its_file(tmp_path: Path) -> None:
    write_labelme(tmp_path, ".", TWO_IMAGES)
    for old, new in (("a.jpg", "c.jpg"), ("a.json", "c.json")):
        shutil.move(tmp_path / old, tmp_path / new)
    assert [image.path.name for image in read_dataset(tmp_path).images] == ["b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("rectangle", [[11, 22], [1, 2]], [1, 2, 11, 22]),
        ("rectangle", [[1, 2], [11, 2], [11, 22], [1, 22]], [1, 2, 11, 22]),
        ("polygon", [[10, 20], [30, 5], [25, 40]], [10, 5, 30, 40]),
        ("circle", [[30, 20], [33, 24]], [25, 15, 35, 25]),
        ("mask", [[10, 20], [30, 40]], [10, 20, 30, 40]),
        ("linestrip", [[10, 20], [30, 25], [20, 40]], [10, 20, 30, 40]),
        (None, [[10, 20], [30, 5], [25, 40]], [10, 5, 30, 40]),
    ],
)
def test_shapes_become_boxes(
    tmp_path: Path, kind: str | None, points: list[list[float]], box: list[float]
) -> None:
    write_shapes(tmp_path, [{"label": "dog", "points": points, "shape_type": kind}])
    assert read_dataset(tmp_path).images[0].boxes_xyxy.tolist() == [box]


def test_shapes_of_labelme_3_are_polygons(tmp_path: Path) -> None:
    write_images(tmp_path, TWO_IMAGES[:1])
    shape = {"label": "dog", "line_color": None, "points": [[1, 2], [11, 2], [11, 22], [1, 22]]}
    write_json(tmp_path / "a.json", {"flags": {}, "shapes": [shape], "imagePath": "a.jpg", "imageData": None})
    (image,) = read_dataset(tmp_path).images
    assert image.boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert (image.width, image.height, image.size_stated) == (80, 60, False)


def test_parts_of_a_group_are_one_object(tmp_path: Path) -> None:
    parts = [labelme_shape("dog", (1, 2, 11, 22)), labelme_shape("dog", (20, 5, 30, 40))]
    others = [labelme_shape("cat", (3, 3, 5, 5)), labelme_shape("dog", (50, 50, 60, 60))]
    grouped = [{**shape, "group_id": 1} for shape in (*parts, others[0])]
    write_shapes(tmp_path, [*grouped, others[1]])
    (image,) = read_dataset(tmp_path).images
    assert image.boxes_xyxy.tolist() == [[1, 2, 30, 40], [3, 3, 5, 5], [50, 50, 60, 60]]


def test_points_and_lines_are_counted(tmp_path: Path) -> None:
    shapes = [
        {"label": "dog", "points": [[10, 20]], "shape_type": "point"},
        {"label": "dog", "points": [[10, 20], [30, 25]], "shape_type": "line"},
        {"label": "dog", "points": [[10, 20], [30, 5], [25, 40]], "shape_type": "polygon"},
        labelme_shape("dog", (1, 2, 11, 22)),
    ]
    write_shapes(tmp_path, shapes)
    data = read_split(tmp_path, None)
    assert {finding.kind: finding.count for finding in data.findings} == {
        "unsupported_shape": 2,
        "boxed_shape": 1,
        "no_mask": 1,
    }
    assert data.num_objects == 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"points": [[1, 2], [3, 4]]}, "shape 1: label: Field required"),
        (
            {"label": "", "points": [[1, 2], [3, 4]]},
            "shape 1: label: String should have at least 1 character",
        ),
        ({"label": "dog", "points": []}, "shape 1: points: List should have at least 1 item"),
        ({"label": "dog", "points": [[1, 2], [3]]}, r"shape 1: points\[1\]\[1\]: Field required"),
        (
            {"label": "dog", "points": [["left", 2]]},
            r"shape 1: points\[0\]\[0\]: Input should be a valid number",
        ),
        ({"label": "dog", "points": [[True, 2]]}, r"shape 1: points\[0\]\[0\]: .*, not true or false"),
        ("dog", "shape 1: Input should be"),
    ],
)
def test_faults_of_a_shape_are_errors(tmp_path: Path, shape: Any, message: str) -> None:
    write_shapes(tmp_path, [shape])
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faults_of_one_file_name_it(tmp_path: Path) -> None:
    write_labelme(tmp_path, ".", TWO_IMAGES)
    (tmp_path / "b.json").write_text('{"shapes": ')
    with pytest.raises(
        DataError, match=r"b\.json: Invalid JSON: .*; expected labelme JSON, an object with 'shapes'"
    ):
        read_dataset(tmp_path)


def test_embedded_image_data_before_the_shapes(tmp_path: Path) -> None:
    write_images(tmp_path, TWO_IMAGES[:1])
    content = labelme(TWO_IMAGES[0], [labelme_shape("dog", (1, 2, 11, 22))])
    write_json(
        tmp_path / "a.json",
        {"imageData": "A" * 200_000, **{key: content[key] for key in ("shapes", "imagePath")}},
    )
    assert read_dataset(tmp_path).num_objects == 1


def test_old_files_with_embedded_data_name_themselves(tmp_path: Path) -> None:
    write_labelme(tmp_path, ".", TWO_IMAGES)
    write_json(tmp_path / "b.json", {**labelme(TWO_IMAGES[1], []), "imagePath": "b.json"})
    assert [image.path.name for image in read_dataset(tmp_path).images] == ["a.jpg", "b.jpg"]


def test_one_file_is_a_dataset(tmp_path: Path) -> None:
    write_labelme(tmp_path, ".", TWO_IMAGES)
    assert [image.path.name for image in read_dataset(tmp_path / "a.json").images] == ["a.jpg"]
