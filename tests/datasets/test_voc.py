from __future__ import annotations

import random
from pathlib import Path

import pytest
from dataset_writers import Drawn, voc_xml, write_voc

from querybox.data import read_dataset
from querybox.data.findings import FindingCollector
from querybox.data.formats import voc
from querybox.data.formats.voc import voc_splits
from querybox.data.formats.voc_xml import Annotation, parse_voc
from querybox.errors import DataError

IMAGES = [
    Drawn(name="a.png", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.png", size=(30, 40)),
]
BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;">]>
<annotation><size><width>4</width><height>3</height></size>&lol2;</annotation>"""
EXTERNAL = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY secret SYSTEM "file:///etc/hostname">]>
<annotation>&secret;</annotation>"""


def test_every_split_has_the_categories_of_all(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES[:1])
    write_voc(tmp_path, "val", IMAGES[1:])
    for split in ("train", "val"):
        categories = read_dataset(tmp_path, split).categories
        assert [(category.id, category.name) for category in categories] == [(1, "cat"), (2, "dog")]
    assert [image.path.name for image in read_dataset(tmp_path, "validation").images] == ["b.png"]


def test_files_are_parsed_once_for_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path, "train", IMAGES[:1])
    write_voc(tmp_path, "val", IMAGES[1:])
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation")
    parsed: list[str] = []

    def parse(file: Path, findings: FindingCollector) -> Annotation | None:
        parsed.append(file.name)
        return parse_voc(file, findings)

    monkeypatch.setattr(voc, "parse_voc", parse)
    splits = voc_splits(tmp_path)
    for _ in range(2):  # a split can be read twice
        for split, name in (("train", "a.png"), ("val", "b.png")):
            data = splits[split]()
            assert [image.path.name for image in data.images] == [name]
            assert [finding.count for finding in data.findings if finding.kind == "malformed"] == [1]
    assert parsed == ["a.xml", "b.xml", "c.xml"]


def test_lists_of_single_classes_are_no_splits(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("a -1\nb 1\n")
    assert len(read_dataset(tmp_path).images) == 2


def test_without_lists_all_images_are_read(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    assert len(read_dataset(tmp_path).images) == 2


def test_a_size_of_zero_is_read_from_the_image(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>40</width>", "<width>0</width>"))
    assert read_dataset(tmp_path).images[0].width == 40


@pytest.mark.parametrize("marked", [("0", " 1 "), ("False", "True")])
def test_objects_marked_difficult_are_used_and_noted(tmp_path: Path, marked: tuple[str, str]) -> None:
    write_voc(tmp_path, "train", IMAGES)
    file = tmp_path / "Annotations" / "a.xml"
    first, *others = file.read_text().split("<name>")
    marks = [f"<difficult>{mark}</difficult>" for mark in marked]
    file.write_text(first + "".join(f"{mark}<name>{text}" for mark, text in zip(marks, others, strict=True)))
    data = read_dataset(tmp_path)
    (found,) = (one for one in data.findings if one.kind == "difficult_object")
    assert [place.what for place in found.places] == [f"{file}, object 2"]
    assert len(data.images[0].labels) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not well-formed"),
        ("<annotation><size></annotation>", "not well-formed XML: mismatched tag: line 1, column 20"),
        (BOMB, "not allowed"),
        (EXTERNAL, "not allowed"),
        ('<?xml version="1.0" encoding="utf-32"?><a/>', "cannot be read as XML|not well-formed"),
        ('<?xml version="1.0" encoding="no-such"?><a/>', "cannot be read as XML|not well-formed"),
        (voc_xml(IMAGES[0]).replace("<xmin>5</xmin>", ""), "object 2 has the box .*expected numbers"),
        (voc_xml(IMAGES[0]).replace("<xmin>5</xmin>", "<xmin>five</xmin>"), "object 2 has the box"),
        (voc_xml(IMAGES[0]).replace("<name>cat</name>", "<name> </name>"), "object 2 has no name"),
    ],
)
def test_faults_of_a_file_are_errors(tmp_path: Path, text: str, message: str) -> None:
    write_voc(tmp_path, "train", IMAGES)
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "a.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_nesting_and_mutations_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES[:1])
    file = tmp_path / "Annotations" / "a.xml"
    good = file.read_bytes()
    random_ = random.Random(0)
    files = [b"<a>" * 100_000 + b"</a>" * 100_000]
    for _ in range(100):
        mutated = bytearray(good)
        start = random_.randrange(len(mutated))
        mutated[start : start + random_.randint(0, 3)] = random_.choice(
            [b"", b"\x00", b"<", b"9" * 400, b"nan", b"&"]
        )
        files.append(bytes(mutated))
    for content in files:
        file.write_bytes(content)
        try:
            read_dataset(tmp_path)
        except DataError:
            continue


def test_missing_files_are_errors(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    for name in ("a", "b"):
        (tmp_path / "JPEGImages" / f"{name}.png").unlink()
    with pytest.raises(
        DataError, match=r"none of its images can be read: the first is 'a\.jpg'; searched .*JPEGImages"
    ):
        read_dataset(tmp_path)
    (tmp_path / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match="1 of 2 XML files are missing: b"):
        read_dataset(tmp_path)


def test_an_image_listed_twice_is_an_error(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", IMAGES)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"train\.txt: images must be listed once; repeated: a"):
        read_dataset(tmp_path)
