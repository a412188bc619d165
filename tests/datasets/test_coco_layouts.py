"""Layouts of COCO files as annotation tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataset_writers import Drawn, coco, write_images, write_json
from layouts import IMAGES, NAMES, kinds, require_both, splits

from querybox.data import read_dataset


@pytest.mark.parametrize("name", ["labels.json", "my_export.json", "annotations/x.json", "sub/anything.json"])
def test_any_coco_file_is_recognised_by_its_content(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "pictures", IMAGES)
    write_json(
        tmp_path / "results.json", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]
    )
    write_json(tmp_path / "package.json", {"name": "x"})
    file = write_json(tmp_path / name, coco(IMAGES, NAMES))
    (data,) = splits(tmp_path).values()
    require_both(data)
    assert data.source == file


def test_images_beside_a_file_of_a_split(tmp_path: Path) -> None:
    for year in ("train2017", "val2017"):
        write_images(tmp_path / year, IMAGES)
        write_json(tmp_path / f"{year[:-4]}.json", coco(IMAGES, NAMES))
    read = splits(tmp_path)
    assert read.keys() == {"train", "val"}
    for name, data in read.items():
        require_both(data)
        assert {image.path.parent.name for image in data.images} == {f"{name}2017"}


def test_a_folder_of_annotations_beside_the_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", IMAGES)
    write_json(tmp_path / "coco" / "train.json", coco(IMAGES, NAMES))
    (data,) = splits(tmp_path / "coco").values()
    require_both(data)
    require_both(read_dataset(tmp_path / "coco" / "train.json"))


def test_a_large_file_is_recognised_by_its_ends(tmp_path: Path) -> None:
    write_images(tmp_path / "images", IMAGES)
    write_json(tmp_path / "a.json", {"big": "x" * 300_000})
    write_json(tmp_path / "b.json", {"info": "x" * 100_000, **coco(IMAGES, NAMES)})
    require_both(read_dataset(tmp_path))


def test_names_as_ids_are_numbered(tmp_path: Path) -> None:
    document = coco(IMAGES, NAMES)
    for image in document["images"]:
        image["id"] = image["file_name"]
    for item in document["annotations"]:
        item["image_id"] = IMAGES[item["image_id"] - 1].name
        item["category_id"] = NAMES[item["category_id"] - 1]
    for item in document["categories"]:
        item["id"] = item["name"]
    write_images(tmp_path, IMAGES)
    data = read_dataset(write_json(tmp_path / "train.json", document))
    require_both(data, {"string_id": 4})
    assert [image.id for image in data.images] == [1, 2]
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]


def test_numbers_as_strings_and_floats_are_numbers(tmp_path: Path) -> None:
    document = coco(IMAGES, NAMES)
    document["images"][0]["id"] = "1"
    document["images"][1]["id"] = 2.0
    document["annotations"][0]["category_id"] = "2"
    write_images(tmp_path, IMAGES)
    data = read_dataset(write_json(tmp_path / "train.json", document))
    require_both(data)
    assert [image.id for image in data.images] == [1, 2]


def test_polygons_of_several_parts_are_one_object(tmp_path: Path) -> None:
    document = coco(IMAGES, NAMES)
    del document["annotations"][0]["bbox"]
    document["annotations"][0]["segmentation"] = [[1, 2, 5, 2, 5, 9], [11, 22, 4, 22, 4, 10, 9, 10]]
    write_images(tmp_path, IMAGES)
    require_both(
        read_dataset(write_json(tmp_path / "train.json", document)), {"boxed_shape": 1, "no_mask": 2}
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_encodings_of_coco(tmp_path: Path, encoding: str) -> None:
    write_images(tmp_path / "images", IMAGES)
    text = json.dumps(coco(IMAGES, ["猫", "狗", *NAMES]), ensure_ascii=False)
    (tmp_path / "train.json").write_bytes(text.encode(encoding))
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == ["猫", "狗", *NAMES]
    assert kinds(data) == ({"other_encoding": 1} if encoding == "gbk" else {})


@pytest.mark.parametrize("ids", [["2015_1", "20_151"], ["1.0", "1"], ["+1", " 1"], ["-1", "1"]])
def test_strings_of_more_than_digits_are_no_numbers(tmp_path: Path, ids: list[str]) -> None:
    """Each pair was one number, or an error."""
    document = coco(IMAGES, NAMES)
    for image, number in zip(document["images"], ids, strict=True):
        image["id"] = number
    for item in document["annotations"]:
        item["image_id"] = ids[item["image_id"] - 1]
    write_images(tmp_path, IMAGES)
    data = read_dataset(write_json(tmp_path / "train.json", document))
    assert [image.id for image in data.images] == [1, 2]
    assert "string_id" in {finding.kind for finding in data.findings}


def test_images_that_no_file_lists_are_named(tmp_path: Path) -> None:
    """Some tools leave images out that have no objects, or of which nobody has drawn any."""
    listed = [Drawn(name=f"{name}.png", size=(20, 20)) for name in ("a", "b c", "d", "e")]
    write_images(tmp_path / "images", listed)
    write_images(tmp_path / "other", listed)  # no image of it is listed
    for split, images in {"train": listed[:1], "val": listed[1:2]}.items():
        document = coco(images, NAMES)
        document["images"][0]["file_name"] = f"C:\\photos\\images\\{images[0].name.replace(' ', '%20')}"
        write_json(tmp_path / "annotations" / f"{split}.json", document)
    write_json(tmp_path / "annotations" / "test.json", {"images": [3], "categories": [], "annotations": []})
    for split in ("train", "val"):
        data = read_dataset(tmp_path, split)
        assert kinds(data)["unlabeled_image"] == 2
        places = {finding.kind: finding.places for finding in data.findings}["unlabeled_image"]
        assert [place.what for place in places] == [
            str(tmp_path / "images" / name) for name in ("d.png", "e.png")
        ]
    assert "unlabeled_image" not in kinds(read_dataset(tmp_path / "annotations" / "train.json"))
