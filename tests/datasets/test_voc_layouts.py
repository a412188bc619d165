"""Layouts of Pascal VOC folders as annotation tools write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_writers import Drawn, voc_xml, write_images, write_voc
from layouts import A_BOXES, B_BOXES, IMAGES, NAMES, kinds, require_both, splits

from querybox.data import read_dataset
from querybox.errors import DataError
from querybox.polygons import Polygons


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


def test_images_of_voc_may_have_names_in_another_case(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    for image in list((tmp_path / "JPEGImages").iterdir()):
        image.rename(image.with_name(image.name.upper()))
    data = read_dataset(tmp_path)
    assert sorted(record.path.name.upper() for record in data.images) == ["A.PNG", "B.PNG"]
    assert not data.findings


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
    cut = both.replace("<x2>9</x2>", "")
    objects = "".join(f"<object><name>dog</name>{shape}</object>" for shape in (rotated, polygon, both, cut))
    (tmp_path / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"
    )
    data = read_dataset(tmp_path)
    boxes = [[18, 10, 22, 20], [3, 4, 9, 20], [1, 2, 11, 22], [1, 2, 11, 22]]
    np.testing.assert_allclose(data.images[0].boxes_xyxy, boxes)
    assert data.images[0].masks == (None, *[Polygons.of([[3, 4, 9, 5, 6, 20]])] * 2, None)
    assert kinds(data) == {"boxed_shape": 2, "malformed_mask": 1, "no_mask": 2, "repeated_object": 1}
