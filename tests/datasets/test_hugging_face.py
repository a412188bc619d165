from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from annotation_writers import write_csv, write_hugging_face
from dataset_writers import Drawn, write_images

from querybox.data import read_dataset
from querybox.errors import DataError

IMAGES = [
    Drawn(name="a.jpg", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.jpg", size=(30, 40)),
]
README = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: kind
    dtype:
      class_label:
        names:
          '0': indoors
  - name: objects
    sequence:
    - name: bbox
      sequence: float32
      length: 4
    - name: category
      dtype:
        class_label:
          names:
            '0': owl
            '1': dog
            '2': cat
---
# Dogs
"""


def write_lines(root: Path, *lines: Any) -> None:
    write_images(root, IMAGES)
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def objects(categories: list[int | str], **more: Any) -> dict[str, Any]:
    return {"bbox": [[1, 2, 10, 20], [5, 5, 35, 25]], "category": categories, **more}


def test_names_of_classes(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, ".", IMAGES)
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    assert data.images[0].labels.tolist() == [1, 0]
    assert [(image.width, image.height, image.size_stated) for image in data.images] == [
        (40, 30, False),
        (30, 40, False),
    ]
    assert not data.findings


def test_folders_are_splits(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, "train", IMAGES[:1])
    write_hugging_face(tmp_path, "validation", IMAGES[1:])
    train, val = (read_dataset(tmp_path, split) for split in ("train", "val"))
    assert train.categories == val.categories
    assert [image.path for image in val.images] == [tmp_path / "validation" / "b.jpg"]


def test_one_file_for_all_splits(tmp_path: Path) -> None:
    for split, image in zip(("train", "validation"), IMAGES, strict=True):
        write_images(tmp_path / split, [image])
    lines = [
        {"file_name": "train/a.jpg", "objects": objects(["dog", "cat"])},
        {"file_name": "validation/b.jpg", "objects": objects(["owl", "cat"])},
        {"file_name": "c.jpg", "objects": objects(["owl", "cat"])},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train, val = (read_dataset(tmp_path, split) for split in ("train", "val"))
    assert [image.path for image in train.images] == [tmp_path / "train" / "a.jpg"]
    assert [image.path for image in val.images] == [tmp_path / "validation" / "b.jpg"]
    assert train.categories == val.categories
    assert [category.name for category in train.categories] == ["cat", "dog", "owl"]
    assert {finding.kind: finding.count for finding in val.findings} == {"unread_file": 1, "clipped_box": 1}


def test_numbers_of_classes_are_their_ids(tmp_path: Path) -> None:
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects([10, 9])})
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(9, "9"), (10, "10")]
    assert data.images[0].labels.tolist() == [1, 0]


def test_names_of_the_same_number_are_different_classes(tmp_path: Path) -> None:
    """They had one id."""
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects(["1", "01"])})
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "01"), (2, "1")]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_readme_names_the_numbers(tmp_path: Path, newline: str) -> None:
    write_lines(tmp_path / "train", {"file_name": "a.jpg", "objects": objects([1, 2])})
    (tmp_path / "README.md").write_text(README, encoding="utf-8", newline=newline)
    for path in (tmp_path, tmp_path / "train" / "metadata.jsonl"):
        data = read_dataset(path)
        assert [(category.id, category.name) for category in data.categories] == [
            (0, "owl"),
            (1, "dog"),
            (2, "cat"),
        ]
        assert data.images[0].labels.tolist() == [1, 2]


def test_numbers_that_the_readme_does_not_name_are_an_error(tmp_path: Path) -> None:
    """They became classes of their own, whose order was another one."""
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects([1, 7])})
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    with pytest.raises(
        DataError, match=r"metadata\.jsonl, line 1, object 2: class 7; the dataset defines 0, 1, 2"
    ):
        read_dataset(tmp_path)


def test_a_number_without_a_name_keeps_the_names_of_the_others(tmp_path: Path) -> None:
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects([1, 2])})
    (tmp_path / "README.md").write_text(README.replace("'1': dog", "'1': ''"), encoding="utf-8")
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(0, "owl"), (1, ""), (2, "cat")]
    assert "unnamed_category" in {finding.kind for finding in data.findings}
    (tmp_path / "README.md").write_text(README.replace("'1': dog", "'1': cat"), encoding="utf-8")
    with pytest.raises(DataError, match="'cat' is the name of 2 classes: 1, 2"):
        read_dataset(tmp_path)


def test_names_that_the_readme_does_not_define_are_an_error(tmp_path: Path) -> None:
    """The classes got another order, and those without objects were left out."""
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects(["dog", "Cat"])})
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    with pytest.raises(
        DataError, match="classes that the dataset does not define: 'Cat'; it defines 'owl', 'dog', 'cat'"
    ):
        read_dataset(tmp_path)
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects(["dog", "cat"])})
    assert [category.name for category in read_dataset(tmp_path).categories] == ["owl", "dog", "cat"]


def test_the_class_of_an_image_is_not_that_of_its_objects(tmp_path: Path) -> None:
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects([0, 1])})
    readme = README.replace("name: kind", "name: label").split("      dtype:\n        class_label")[0]
    (tmp_path / "README.md").write_text(readme + "      dtype: int64\n---\n", encoding="utf-8")
    assert [category.name for category in read_dataset(tmp_path).categories] == ["0", "1"]


@pytest.mark.parametrize("text", ["", "# Dogs", "---\n[", "---\na: 1\n---\n", "---\n? {a: b}\n: c\n---\n"])
def test_other_readmes_are_ignored(tmp_path: Path, text: str) -> None:
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects([1, 2])})
    (tmp_path / "README.md").write_text(text)
    assert [category.id for category in read_dataset(tmp_path).categories] == [1, 2]


@pytest.mark.parametrize("none", [None, {}, [], {"bbox": []}, {"bbox": None, "category": None}])
def test_an_image_without_objects(tmp_path: Path, none: object) -> None:
    write_lines(
        tmp_path,
        {"file_name": "a.jpg", "objects": objects([0, 1])},
        {"file_name": "b.jpg", "objects": none},
    )
    assert [len(image.labels) for image in read_dataset(tmp_path).images] == [2, 0]


def test_crowds_areas_and_sizes(tmp_path: Path) -> None:
    full = objects(["dog", "cat"], iscrowd=[1, 0], area=[100.0, None])
    write_lines(
        tmp_path,
        {"file_name": "a.jpg", "width": 40, "height": 30, "objects": full},
        {"file_name": "b.jpg", "width": 0, "height": 0, "objects": {"bbox": [], "categories": []}},
    )
    first, second = read_dataset(tmp_path).images
    assert first.crowd.tolist() == [True, False]
    assert first.areas.tolist() == [100, 35 * 25]
    assert (first.size_stated, second.size_stated) == (True, False)
    assert (second.width, second.height) == (30, 40)


def test_a_list_of_objects(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [
        {"bbox": [1, 2, 10, 20], "category": "dog"},
        {"bbox": [5, 5, 35, 25], "category": "cat"},
    ]
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": items}, {"file_name": "b.jpg", "objects": None})
    assert read_dataset(tmp_path).images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    items[1]["iscrowd"] = 1  # which the first does not have
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": items})
    assert read_dataset(tmp_path).images[0].crowd.tolist() == [False, True]


def test_an_empty_column_of_csv_states_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    rows = [
        ["file_name", "objects", "width", "height"],
        ["a.jpg", json.dumps(objects(["dog", "cat"])), "", ""],
    ]
    write_csv(tmp_path / "metadata.csv", rows)
    (image,) = read_dataset(tmp_path).images
    assert (image.width, image.height, image.size_stated) == (40, 30, False)


def test_json_in_csv(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    rows = [["file_name", "objects"], ["a.jpg", json.dumps(objects([0, 1]))], ["b.jpg", ""]]
    write_csv(tmp_path / "metadata.csv", rows)
    data = read_dataset(tmp_path)
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    assert [category.id for category in data.categories] == [0, 1]
    assert [image.path.name for image in data.images] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: EOF while parsing an object at line 1 column 1; expected an object with 'file_name'"),
        ("7", "line 2: Input should be"),
        ('{"file_name": "b.jpg", "objects": 7}', "line 2: objects"),
        (
            '{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3]], "category": [0]}}',
            r"line 2: bbox\[0\]\[3\]: Field",
        ),
        (
            '{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [0, 1]}}',
            "line 2: .* differ in len",
        ),
        (
            '{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [-1]}}',
            r"line 2: category\[0\]: Input should be greater",
        ),
        (
            '{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [true]}}',
            r"line 2: category: Input should be a number, not true or false",
        ),
        (
            '{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3, true]], "category": [1]}}',
            r"line 2: bbox\[0\]\[3\]: Input should be a number, not true or false",
        ),
        ('{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3, 4]]}}', "line 2: categories: Field required"),
        ('{"objects": {}}', "line 2: file_name: Field required"),
    ],
)
def test_faults_of_a_line_are_errors(tmp_path: Path, line: str, message: str) -> None:
    write_lines(tmp_path, {"file_name": "a.jpg", "objects": objects([0, 1])})
    with (tmp_path / "metadata.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "metadata.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_without_boxes_is_no_dataset(tmp_path: Path) -> None:
    write_lines(tmp_path, {"file_name": "a.jpg", "text": "a dog"})
    with pytest.raises(DataError, match=r"contains JSON lines other than a `metadata\.jsonl` with boxes"):
        read_dataset(tmp_path)


def test_faults_of_a_row_are_errors(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    for objects_, message in (("{", "line 2: EOF while"), ('{"bbox": 7, "category": []}', "line 2: bbox: ")):
        write_csv(tmp_path / "metadata.csv", [["file_name", "objects"], ["a.jpg", objects_]])
        with pytest.raises(DataError, match=rf"metadata\.csv, {message}"):
            read_dataset(tmp_path)
