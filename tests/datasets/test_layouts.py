"""Kinds of folders and files as annotation tools write them; each is read with its boxes, or its problem is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import Drawn, coco, voc_xml, write_coco, write_images, write_json, write_voc, write_yolo

from querybox.data import read_dataset
from querybox.data.read import find_splits
from querybox.data.records import DetectionData
from querybox.errors import DataError

IMAGES = [
    Drawn(name="a.png", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.png", size=(30, 40), objects=[("cat", (3, 4, 20, 30))]),
]
NAMES = ["cat", "dog"]
A_BOXES, B_BOXES = [[1, 2, 11, 22], [5, 5, 40, 30]], [[3, 4, 20, 30]]


def splits(path: Path) -> dict[str, DetectionData]:
    return {name: read() for name, read in find_splits(path).items()}


def kinds(data: DetectionData) -> dict[str, int]:
    return {finding.kind: finding.count for finding in data.findings}


def require_both(data: DetectionData, kinds_found: dict[str, int] | None = None) -> None:
    assert kinds(data) == (kinds_found or {})
    assert [image.path.name for image in data.images] == ["a.png", "b.png"]
    for image, boxes in zip(data.images, [A_BOXES, B_BOXES], strict=True):
        np.testing.assert_allclose(image.boxes_xyxy, boxes, atol=0.02)
    assert [[data.categories[label].name for label in image.labels] for image in data.images] == [
        ["dog", "cat"],
        ["cat"],
    ]


# COCO


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
    require_both(read_dataset(write_json(tmp_path / "train.json", document)), {"boxed_shape": 1})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_encodings_of_coco(tmp_path: Path, encoding: str) -> None:
    write_images(tmp_path / "images", IMAGES)
    text = json.dumps(coco(IMAGES, ["猫", "狗", *NAMES]), ensure_ascii=False)
    (tmp_path / "train.json").write_bytes(text.encode(encoding))
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == ["猫", "狗", *NAMES]
    assert kinds(data) == ({"other_encoding": 1} if encoding == "gbk" else {})


# Pascal VOC


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annots", "images"),
        ("labels", "images"),
        ("annotations/xmls", "images"),
        ("Annotations", "."),
        (".", "."),
        ("xml", "JPEGImages/deep"),
        ("anything", "photos"),
    ],
)
def test_layouts_of_voc(tmp_path: Path, annotations: str, images: str) -> None:
    write_images(tmp_path / images, IMAGES)
    (tmp_path / annotations).mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        (tmp_path / annotations / image.name).with_suffix(".xml").write_text(voc_xml(image))
    read = splits(tmp_path)
    assert read.keys() == {"all"}
    require_both(read["all"])
    if annotations in {"annots", "labels"}:
        require_both(read_dataset(tmp_path / annotations))


@pytest.mark.parametrize(
    "layout", ["{split}", "{split}/Annotations", "Annotations/{split}", "data/{split}/labels"]
)
def test_voc_in_folders_of_splits(tmp_path: Path, layout: str) -> None:
    for split, image in zip(("train", "valid"), IMAGES, strict=True):
        folder = tmp_path / layout.format(split=split)
        folder.mkdir(parents=True)
        (folder / "1.xml").write_text(voc_xml(image))
        images = folder.with_name("images") if folder.name in {"Annotations", "labels"} else folder
        if layout.startswith("Annotations"):
            images = tmp_path / "JPEGImages" / split
        write_images(images, [Drawn(name="1.png", size=image.size)])
    read = splits(tmp_path)
    assert read.keys() == {"train", "val"}
    expected: list[tuple[str, Drawn, list[list[int]]]] = [
        ("train", IMAGES[0], A_BOXES),
        ("val", IMAGES[1], B_BOXES),
    ]
    for name, image, boxes in expected:
        (record,) = read[name].images
        assert (record.width, record.height) == image.size
        assert record.boxes_xyxy.tolist() == boxes
        assert ("train" in str(record.path.relative_to(tmp_path))) == (name == "train")
        assert [category.name for category in read[name].categories] == NAMES
        assert not read[name].findings


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": "a\n", "val": "b\n"}, {"train": ["a.png"], "val": ["b.png"]}),
        ({"train": "a.png\n", "val": "JPEGImages/b.png\n"}, {"train": ["a.png"], "val": ["b.png"]}),
        ({"cat_train": "a  1\n", "dog_train": "a -1\n", "cat_val": "b 1\n", "dog_val": "b -1\n"},
         {"train": ["a.png"], "val": ["b.png"]}),
        ({"cat_train": "a 1\nb -1", "dog_train": "b 1\na  0\n"}, {"train": ["a.png", "b.png"]}),
        ({"train": "a\n", "cat_train": "a 1\n", "trainval": "a\nb\n"},
         {"train": ["a.png"], "trainval": ["a.png", "b.png"]}),
        ({"train": "a\\b.png\n"}, {"train": ["b.png"]}),
    ],
)  # fmt: skip
def test_lists_of_voc(tmp_path: Path, lists: dict[str, str], expected: dict[str, list[str]]) -> None:
    write_voc(tmp_path, "train", IMAGES)
    folder = tmp_path / "ImageSets" / "Main"
    (folder / "train.txt").unlink()
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    read = splits(tmp_path)
    assert {name: [image.path.name for image in data.images] for name, data in read.items()} == expected


def test_a_list_with_ambiguous_names_needs_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_images(tmp_path / "JPEGImages" / folder, IMAGES[:1])
        (tmp_path / "Annotations" / folder).mkdir(parents=True)
        (tmp_path / "Annotations" / folder / "a.xml").write_text(voc_xml(IMAGES[0]))
    image_list = tmp_path / "ImageSets" / "Main" / "train.txt"
    image_list.parent.mkdir(parents=True)
    image_list.write_text("y/a.png\n")
    (image,) = read_dataset(tmp_path).images
    assert image.path == tmp_path / "JPEGImages" / "y" / "a.png"
    image_list.write_text("a\n")
    with pytest.raises(
        DataError, match=r"1 of 1 XML files are missing: a \(several, e\.g\. Annotations/x/a\.xml"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("declared", "encoding", "found"),
    [
        ("", "utf-8", {}),
        ("", "utf-8-sig", {}),
        ("utf-8", "utf-16", {}),
        ("gbk", "gbk", {}),
        ("GB2312", "gb2312", {}),
        ("iso-8859-1", "iso-8859-1", {}),
        ("utf-8", "gbk", {"other_encoding": 1}),
        ("", "gbk", {"other_encoding": 1}),
    ],
)
def test_encodings_of_voc(tmp_path: Path, declared: str, encoding: str, found: dict[str, int]) -> None:
    name = "chat-é" if encoding == "iso-8859-1" else "狗"
    image = Drawn(name="a.png", size=(40, 30), objects=[(name, (1, 2, 11, 22))])
    write_voc(tmp_path, "train", [image])
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    text = (declaration + voc_xml(image)).replace('encoding="utf-8"', 'encoding="utf-16"' if encoding == "utf-16" else
                                                  'encoding="utf-8"')  # fmt: skip
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == [name]
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert kinds(data) == found


def test_what_voc_does_not_use_is_counted(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    write_images(
        tmp_path / "JPEGImages", [Drawn(name="c.png", size=(9, 9)), Drawn(name="other.png", size=(9, 9))]
    )
    write_images(tmp_path / "SegmentationClass", [Drawn(name="z.png", size=(9, 9))])
    (tmp_path / "Annotations" / "notes.xml").write_text("<notes/>")
    a = tmp_path / "Annotations" / "a.xml"
    a.write_text(a.read_text().replace("<size>", "<filename>other.jpg</filename><size>"))
    data = read_dataset(tmp_path)
    require_both(data, {"unlabeled_image": 1, "unread_file": 1, "other_file_name": 1})
    places = {finding.kind: finding.places[0].what for finding in data.findings}
    assert places["unlabeled_image"].endswith("c.png")
    assert places["unread_file"].endswith("notes.xml: its root is <notes>; expected <annotation>")


def test_files_outside_the_folders_of_voc_splits_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "train", IMAGES)
    for image in IMAGES:
        (tmp_path / "train" / image.name).with_suffix(".xml").write_text(voc_xml(image))
    write_images(tmp_path, [Drawn(name="c.png", size=(9, 9))])
    (tmp_path / "c.xml").write_text(voc_xml(Drawn(name="c.png", size=(9, 9))))
    read = splits(tmp_path)
    assert read.keys() == {"train"}
    require_both(read["train"], {"unread_file": 1})


def test_rotated_boxes_and_polygons_of_voc(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES[:1])
    rotated = "<robndbox><cx>20</cx><cy>15</cy><w>10</w><h>4</h><angle>1.5707963267948966</angle></robndbox>"
    polygon = "<polygon><x1>3</x1><y1>4</y1><x2>9</x2><y2>5</y2><x3>6</x3><y3>20</y3></polygon>"
    both = f"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox>{polygon}"
    objects = "".join(f"<object><name>dog</name>{shape}</object>" for shape in (rotated, polygon, both))
    (tmp_path / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"
    )
    data = read_dataset(tmp_path)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[18, 10, 22, 20], [3, 4, 9, 20], [1, 2, 11, 22]])
    assert kinds(data) == {"boxed_shape": 2}


# YOLO


def test_labels_of_ultralytics_with_keypoints(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text(file.read_text() + "\nkpt_shape: [2, 3]\nnc: 3\nroboflow: {project: x}\n")
    label = tmp_path / "labels" / "train" / "b.txt"
    label.write_text(label.read_text().strip() + " 0.5 0.5 2 0.6 0.6 2\n")
    require_both(read_dataset(file), {"keypoints": 1, "ignored_key": 1, "num_classes_mismatch": 1})


@pytest.mark.parametrize(
    "text", ["train: /content/my/images/train", "valid: C:\\data\\images\\train", "test: other/images/train"]
)
def test_entries_of_another_machine(tmp_path: Path, text: str) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    renamed = file.rename(tmp_path / "coco8.yaml")
    renamed.write_text(f"{text}\nnames: {NAMES}\n")
    read = splits(tmp_path)
    assert read.keys() == {{"train": "train", "valid": "val", "test": "test"}[text.partition(":")[0]]}
    (data,) = read.values()
    require_both(data, {"moved_path": 1})


def test_val_and_valid(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text(f"train: images/train\nval: images/train\nvalid: images/gone\nnames: {NAMES}\n")
    assert find_splits(file).keys() == {"train", "val"}
    require_both(read_dataset(file, "val"), {"ignored_key": 1})


@pytest.mark.parametrize("where", ["beside", "beside in splits", "beside in images", "names among labels"])
def test_layouts_of_yolo(tmp_path: Path, where: str) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    names = tmp_path / "classes.txt"
    if where == "names among labels":
        names = labels / "classes.txt"
    elif where == "beside in images":
        for file in labels.iterdir():
            file.rename(images / file.name)
        (labels / "keep.txt").touch()
    else:
        target = tmp_path / "train" if where == "beside in splits" else tmp_path
        target.mkdir(exist_ok=True)
        for file in (*images.iterdir(), *labels.iterdir()):
            file.rename(target / file.name)
        shutil.rmtree(tmp_path / "images")
        shutil.rmtree(tmp_path / "labels")
    names.write_text("cat\ndog\n")
    read = splits(tmp_path)
    assert read.keys() == {"all" if where == "beside" else "train"}
    (data,) = read.values()
    require_both(data, {"unmatched_label": 1} if where == "beside in images" else {})
    if where == "beside":
        require_both(read_dataset(names))


def test_labels_beside_images_without_class_names_need_them(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"class names not found; add a classes\.txt"):
        read_dataset(tmp_path)


def test_texts_beside_images_that_are_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "a.txt").write_text("A photo of a dog.\n")
    with pytest.raises(DataError, match="contains images, but no annotations that are recognised"):
        read_dataset(tmp_path)


def test_what_yolo_does_not_use_is_counted(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    write_images(tmp_path / "images", [Drawn(name="stray.png", size=(9, 9))])
    write_images(tmp_path / "images" / "train", [Drawn(name="c.png", size=(9, 9))])
    (tmp_path / "labels" / "train" / "z.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = read_dataset(tmp_path)
    assert kinds(data) == {"unlabeled_negative": 1, "unmatched_label": 1, "unread_file": 1}
    assert [len(image.labels) for image in data.images] == [2, 1, 0]
    places = {finding.kind: finding.places[0].what for finding in data.findings}
    assert places["unread_file"].endswith("stray.png")
    assert places["unmatched_label"].endswith("z.txt")
    assert places["unlabeled_negative"].endswith("c.png")


def test_values_just_outside_are_clipped(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES[:1], NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.98 1.02 0.2 0.2\n1.0 0.5 0.5 1.05 0.4\n")
    data = read_dataset(file)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[35.2, 27.6, 40.0, 30.0], [0.0, 9.0, 40.0, 21.0]])
    assert data.images[0].labels.tolist() == [0, 1]
    assert kinds(data) == {"clipped_box": 2}


def test_corners_of_rotated_boxes(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES[:1], NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text(
        "0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5\n0 0 0 nan 1 0.5 0.5\n"
    )
    data = read_dataset(file)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[4, 3, 36, 27]])
    assert kinds(data) == {"boxed_shape": 2, "nan_box": 1}


def test_darknet_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.names").write_text("secret\n")
    root = tmp_path / "data"
    write_images(root, IMAGES)
    (root / "train.txt").write_text("a.png\n")
    (root / "obj.data").write_text("train = train.txt\nnames = ../secret.names\n")
    with pytest.raises(DataError, match=r"secret\.names' is outside the dataset's folder"):
        read_dataset(root)
    (root / "obj.data").write_text("train = train.txt\n")
    with pytest.raises(DataError, match="class names not found; expected 'names = '"):
        read_dataset(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_encodings_of_yolo(tmp_path: Path, encoding: str) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_bytes("train: images/train\nnames: [猫, 狗]\n".encode(encoding))
    data = read_dataset(file)
    assert [category.name for category in data.categories] == ["猫", "狗"]
    assert kinds(data) == ({"other_encoding": 1} if encoding == "gbk" else {})


# Boxes, images and classes of any format


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
    with pytest.raises(DataError, match=r"2 boxes, all of them within 0-1 .*: multiply them by the width"):
        read_dataset(tmp_path / "train.json")
    assert kinds(change(tmp_path, [*boxes, [1, 1, 9, 9]])) == {"subpixel_box": 1}


def test_voc_boxes_within_one_are_an_error(tmp_path: Path) -> None:
    write_voc(
        tmp_path, "train", [Drawn(name="a.png", size=(40, 30), objects=[("cat", (0.1, 0.2, 0.5, 0.9))])]
    )
    with pytest.raises(DataError, match="1 boxes, all of them within 0-1"):
        read_dataset(tmp_path)


def test_corners_read_as_sizes_are_noticed(tmp_path: Path) -> None:
    corners = [[10, 8, 35, 28], [20, 3, 39, 29], [5, 12, 38, 30], [1, 2, 9, 9]]
    assert kinds(change(tmp_path, corners)) == {"clipped_box": 3, "xyxy_boxes": 3}
    sizes = [[30, 8, 14, 20], [20, 20, 39, 29], [5, 28, 38, 30], [1, 2, 9, 9]]
    assert kinds(change(tmp_path, sizes)) == {"clipped_box": 3}


def test_an_image_under_two_ids_and_classes_without_names(tmp_path: Path) -> None:
    assert kinds(change(tmp_path, [[1, 2, 9, 9]], count=2)) == {"repeated_image": 2}
    path = write_coco(tmp_path / "other", "train", IMAGES, NAMES)
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = " "
    assert kinds(read_dataset(write_json(path, document))) == {"unnamed_category": 1}
