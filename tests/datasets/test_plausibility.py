"""Annotations that can be parsed but are probably not meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dataset_writers import Box, Drawn, coco, write_coco, write_images, write_json, write_voc, write_yolo
from layouts import IMAGES, NAMES, kinds

from querybox.data import DataSettings, read_dataset, read_train_and_val, validate
from querybox.data.read import find_splits, read_split
from querybox.data.records import DetectionData
from querybox.errors import DataError


def change(tmp_path: Path, boxes: list[Any], count: int = 1) -> DetectionData:
    """Read a COCO dataset of one image of 40x30 with these boxes."""
    images = [Drawn(name="a.png", size=(40, 30), objects=[("cat", (0, 0, 9, 9))] * len(boxes))]
    document = coco(images * count, NAMES)
    for item, box in zip(document["annotations"], boxes * count, strict=True):
        item["bbox"] = box
    write_images(tmp_path, images)
    (reader,) = find_splits(write_json(tmp_path / "train.json", document)).values()
    return reader()


def test_boxes_within_one_are_an_error(tmp_path: Path) -> None:
    boxes = [[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]]
    assert kinds(change(tmp_path, boxes)) == {"normalized_boxes": 2}
    with pytest.raises(
        DataError, match=r"boxes, all of them within 0-1 .*\(2: .*: multiply them by the width"
    ):
        read_dataset(tmp_path / "train.json")
    assert kinds(change(tmp_path, [*boxes, [1, 1, 9, 9]])) == {"subpixel_box": 1}


def test_voc_boxes_within_one_are_an_error(tmp_path: Path) -> None:
    write_voc(
        tmp_path, "train", [Drawn(name="a.png", size=(40, 30), objects=[("cat", (0.1, 0.2, 0.5, 0.9))])]
    )
    with pytest.raises(DataError, match=r"boxes, all of them within 0-1 .*\(1: "):
        read_dataset(tmp_path)


def test_corners_read_as_sizes_are_noticed(tmp_path: Path) -> None:
    corners = [[10, 8, 35, 28], [20, 3, 39, 29], [5, 12, 38, 30], [1, 2, 9, 9]]
    assert kinds(change(tmp_path, corners)) == {"clipped_box": 3, "xyxy_boxes": 3}
    sizes = [[30, 8, 14, 20], [20, 20, 39, 29], [5, 28, 38, 30], [1, 2, 9, 9]]
    assert kinds(change(tmp_path, sizes)) == {"clipped_box": 3}


def test_corners_are_noticed_also_where_not_all_places_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.data.findings.MAX_PLACES", 2)
    corners = [[10, 8, 35, 28], [20, 3, 39, 29], [5, 12, 38, 30], [1, 2, 9, 9]]
    assert kinds(change(tmp_path, corners)) == {"clipped_box": 3, "xyxy_boxes": 3}


def test_exchanged_coordinates_are_noticed(tmp_path: Path) -> None:
    exchanged = [[2, 31, 20, 9], [5, 33, 4, 4], [21, 30, 9, 9], [3, 25, 8, 10], [1, 2, 9, 9]]  # of 40x30
    assert kinds(change(tmp_path, exchanged)) == {"clipped_box": 1, "outside_box": 3, "yx_boxes": 4}
    for other in ([31, 2, 5, 5], [2, 31, 29, 5], [2, 31, 9, 10]):  # does not fit then either
        assert "yx_boxes" not in kinds(change(tmp_path, [*exchanged, other]))
    assert "yx_boxes" not in kinds(change(tmp_path, exchanged[2:]))  # a single box is outside


def test_an_image_under_two_ids_and_classes_without_names(tmp_path: Path) -> None:
    assert kinds(change(tmp_path, [[1, 2, 9, 9]], count=2)) == {"repeated_image": 2}
    path = write_coco(tmp_path / "other", "train", IMAGES, NAMES)
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = " "
    assert kinds(read_dataset(write_json(path, document))) == {"unnamed_category": 1}


def test_classes_that_differ_in_case_or_separators_are_noticed(tmp_path: Path) -> None:
    boxes: list[tuple[str, Box]] = [
        (name, (1, 2, 9, 9)) for name in ("Cat", "cat", "hot dog", "hot_dog", "dog")
    ]
    write_voc(tmp_path, "train", [Drawn(name="a.png", size=(40, 30), objects=boxes)])
    (finding,) = read_dataset(tmp_path).findings
    assert (finding.kind, finding.count) == ("similar_category", 4)
    assert [place.what for place in finding.places] == ["'Cat', 'cat'", "'hot dog', 'hot_dog'"]


def test_images_in_two_splits_are_noticed(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    train, val = read_train_and_val(DataSettings(train=str(file)))
    assert val is not None
    assert (kinds(train), kinds(val)) == ({}, {"shared_image": 2})
    assert val.findings[0].places[0].what == f"{tmp_path / 'images' / 'train' / 'a.png'}: also in train"
    splits = validate(file).splits
    assert [finding.kind for finding in splits["train"].findings if finding.severity == "warning"] == []
    assert [finding.kind for finding in splits["val"].findings if finding.severity == "warning"] == [
        "shared_image"
    ]


def test_copies_of_an_image_in_another_split_are_noticed(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_yolo(tmp_path / name, name, IMAGES, NAMES)
    images = tmp_path / "val" / "images" / "val"
    copy, label = images / "copy.png", tmp_path / "val" / "labels" / "val" / "a.txt"
    copy.write_bytes((images / "a.png").read_bytes())
    label.rename(label.with_name("copy.txt"))
    (images / "a.png").unlink()
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:-1] + b"?")  # of the same size
    settings = DataSettings(train=str(tmp_path / "train"), val=str(tmp_path / "val"))
    _, val = read_train_and_val(settings)
    assert val is not None
    (finding,) = val.findings
    original = tmp_path / "train" / "images" / "train" / "a.png"
    assert (finding.kind, finding.count) == ("shared_image", 1)
    assert finding.places[0].what == f"{copy}: also in train, as {original}"


def test_objects_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    """One of a class and a crowd with the same box are others."""
    boxes = [[1, 2, 9, 9], [1, 2, 9, 9], [1, 2, 9, 9], [1, 2, 9, 8]]
    assert kinds(change(tmp_path, boxes)) == {"repeated_object": 2}
    document = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    document["annotations"][0]["category_id"] = 2
    document["annotations"][1]["iscrowd"] = 1
    write_json(tmp_path / "train.json", document)
    assert "repeated_object" not in kinds(read_split(tmp_path / "train.json", None))


def unannotated(tmp_path: Path, places: dict[str, bool]) -> list[tuple[str, int]]:
    """Return the places of unannotated images among these, which have an object or none."""
    document = coco(
        [Drawn(name=name, size=(9, 9), objects=[("cat", (0, 0, 9, 9))]) for name in places], NAMES
    )
    pairs = zip(document["annotations"], places.values(), strict=True)
    document["annotations"] = [item for item, has_object in pairs if has_object]
    write_images(tmp_path / "a", [Drawn(name="1.png", size=(9, 9))])
    (reader,) = find_splits(write_json(tmp_path / "train.json", document)).values()
    found = [one for one in reader().findings if one.kind == "unannotated_images"]
    return [(place.what, place.count) for one in found for place in one.places]


def test_images_that_may_not_have_been_annotated_are_counted(tmp_path: Path) -> None:
    names = [f"a/{number}.png" for number in range(1, 41)]  # 9 is before 10
    last = dict.fromkeys(names[:30], True) | dict.fromkeys(names[30:], False)
    what = f"the last 10 of 40 images, from {tmp_path / 'a' / '31.png'} on"
    assert unannotated(tmp_path, dict(sorted(last.items()))) == [(what, 10)]
    assert unannotated(tmp_path, last | {"a/31.png": True}) == []
    folder = dict.fromkeys([f"b/{number}.png" for number in range(100, 112)], False)
    all_of_it = (f"{tmp_path / 'b'}: all 12 images", 12)
    assert unannotated(tmp_path, last | folder) == [all_of_it, (what, 10)]
    most = {name: number % 3 == 0 for number, name in enumerate(names)}
    assert unannotated(tmp_path, most) == [("26 of 40 images", 26)]
    half = {name: number % 2 == 1 for number, name in enumerate(names)}
    assert unannotated(tmp_path, half) == []
    assert unannotated(tmp_path, dict.fromkeys(names, False)) == []  # no_objects
