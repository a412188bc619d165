"""A split dataset: what is written is read again with the same images, objects and classes."""

from __future__ import annotations

import errno
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import changed, write_boxes, write_json

from querybox.data import DetectionData, ImageRecord, read_dataset
from querybox.data.attribution import UNKNOWN, read_attribution
from querybox.data.write import (
    coco_annotations,
    file_names,
    read_content,
    sample_names,
    split_dataset,
    write_shards,
)
from querybox.errors import ConfigError, DataError, DiskFullError
from querybox.masks import Region, rasterised
from querybox.polygons import Polygons
from querybox.structures import Category


@pytest.fixture
def boxes(tmp_path: Path) -> DetectionData:
    return read_dataset(write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40), kept={4: 1, 8: 0}))


def test_the_parts_are_the_dataset(boxes: DetectionData, tmp_path: Path) -> None:
    split_dataset(boxes, tmp_path / "new", val=0.25, test=0.25)
    read = {name: read_dataset(tmp_path / "new", name) for name in ("train", "val", "test")}
    assert [len(part.images) for part in read.values()] == [4, 2, 2]
    originals = {image.path.name: image for image in boxes.images}
    images = [image for part in read.values() for image in part.images]
    assert sorted(image.path.name for image in images) == sorted(originals)
    for part in read.values():
        assert part.categories == boxes.categories
        for image in part.images:
            original = originals[image.path.name]
            np.testing.assert_array_equal(image.boxes_xyxy, original.boxes_xyxy)
            np.testing.assert_array_equal(image.labels, original.labels)
            assert image.path.read_bytes() == original.path.read_bytes()


def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(
    boxes: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("shutil.copy2", refuse)
    with pytest.raises(
        DiskFullError, match=r"new.train.\w+\.png: cannot be written \(No space left on device"
    ):
        split_dataset(boxes, tmp_path / "new")


@pytest.mark.parametrize("shards", [None, 4])
def test_an_interrupted_split_leaves_no_smaller_dataset(
    boxes: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int | None
) -> None:
    described: list[ImageRecord] = []

    def interrupt(image: ImageRecord, data: DetectionData) -> list[dict[str, Any]]:
        described.append(image)
        if len(described) > 6:  # those to train on
            raise KeyboardInterrupt
        return coco_annotations(image, data)

    monkeypatch.setattr("querybox.data.write.coco_annotations", interrupt)
    with pytest.raises(KeyboardInterrupt):
        split_dataset(boxes, tmp_path / "new", shards=shards)
    monkeypatch.undo()
    assert not list((tmp_path / "new").iterdir())
    assert len(split_dataset(boxes, tmp_path / "new", shards=shards)["train"].images) == 6


def test_images_are_copied_where_they_cannot_be_linked(
    boxes: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    parts = split_dataset(boxes, tmp_path / "new")
    assert set(parts) == {"train", "val"}
    assert len(read_dataset(tmp_path / "new", "train").images) == 6


def test_repeated_names_are_told_apart(boxes: DetectionData) -> None:
    paths = ("a/x/1.png", "b/x/1.png", "b/y/2.png", "b/y/1.PNG")
    images = tuple(changed(image, path=Path(path)) for image, path in zip(boxes.images, paths, strict=False))
    names = list(file_names(replace(boxes, images=images)).values())
    assert names == ["a_x_1.png", "b_x_1.png", "2.png", "y_1.PNG"]


def test_names_that_differ_in_how_accents_are_composed_are_numbered(boxes: DetectionData) -> None:
    paths = ("a/\u00e9.png", "a/e\u0301.png")  # one file on macOS
    images = tuple(changed(image, path=Path(path)) for image, path in zip(boxes.images, paths, strict=False))
    names = list(file_names(replace(boxes, images=images)).values())
    assert names == ["\u00e9.png", "e\u0301-2.png"]


def test_names_that_repeat_with_all_their_folders_are_numbered(boxes: DetectionData) -> None:
    paths = ("a/x/1.png", "b/x/1.png", "c/b_x_1.png", "a/X/1.PNG", "/1.png")
    images = tuple(changed(image, path=Path(path)) for image, path in zip(boxes.images, paths, strict=False))
    names = list(file_names(replace(boxes, images=images)).values())
    assert names == ["a_x_1.png", "b_x_1.png", "c_b_x_1.png", "a_x_1-2.PNG", "1.png"]


def test_long_names_of_folders_and_file_are_cut(boxes: DetectionData) -> None:
    """They were refused by the system, with a part of the images written."""
    paths = (
        f"{'a' * 200}/x/{'1' * 100}.png",
        f"{'a' * 200}/x/{'1' * 99}2.png",
        f"{'b' * 200}/x/{'1' * 100}.png",
    )
    images = tuple(changed(image, path=Path(path)) for image, path in zip(boxes.images, paths, strict=False))
    names = list(file_names(replace(boxes, images=images)).values())
    assert [len(name) for name in names] == [255, 104, 255]
    assert names[0].startswith(f"{'a' * 200}_x_111")
    assert names[0].endswith(".png")
    assert names == list(file_names(replace(boxes, images=images)).values())
    samples = sample_names(replace(boxes, images=images[:1])).values()
    assert max(len(name) for pair in samples for name in pair) <= 255


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """Return a COCO file of four images, two of them under two ids."""
    document = json.loads((path := write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40))).read_text())
    for image in document["images"]:
        image["file_name"] = f"{image['id'] % 6 or 5}.png"  # 1 2 3 4 5 5 1 2
    return write_json(path, document)


@pytest.mark.parametrize("shards", [None, 3])
def test_images_under_several_ids_are_written(repeated: Path, tmp_path: Path, shards: int | None) -> None:
    data = read_dataset(repeated)
    assert len({image.path for image in data.images}) == 5
    split_dataset(data, tmp_path / "new", val=0.25, shards=shards)
    written = [
        (read_content(image.file), image.boxes_xyxy.tolist(), image.labels.tolist())
        for name in ("train", "val")
        for image in read_dataset(tmp_path / "new", name).images
    ]
    assert sorted(written) == sorted(
        (read_content(image.file), image.boxes_xyxy.tolist(), image.labels.tolist()) for image in data.images
    )
    if shards is None:
        assert len(list((tmp_path / "new").glob("*/*.png"))) == 5
        found = [read_dataset(tmp_path / "new", name).findings for name in ("train", "val")]
        count = sum(each.count for part in found for each in part if each.kind == "repeated_image")
        assert count == sum(each.count for each in data.findings if each.kind == "repeated_image") == 6


def test_images_that_are_relative_links_are_written(boxes: DetectionData, tmp_path: Path) -> None:
    for image in boxes.images:
        image.path.rename(image.path.with_suffix(".data"))
        image.path.symlink_to(f"{image.path.stem}.data")
    split_dataset(boxes, tmp_path / "new")
    for part in ("train", "val"):
        assert all(image.path.read_bytes() for image in read_dataset(tmp_path / "new", part).images)


@pytest.mark.parametrize("shards", [None, 3])
def test_missing_images_are_an_error_before_anything_is_written(
    boxes: DetectionData, tmp_path: Path, shards: int | None
) -> None:
    boxes.images[4].path.unlink()
    with pytest.raises(DataError, match=r"1 of 8 image files are missing: .*5\.png; expected all of them"):
        split_dataset(boxes, tmp_path / "new", shards=shards)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("val", "test"), [(0.0, 0.1), (-0.1, 0.0), (0.5, 0.5), (0.2, -0.1), (float("nan"), 0.0)]
)
def test_impossible_fractions_are_refused(
    boxes: DetectionData, tmp_path: Path, val: float, test: float
) -> None:
    with pytest.raises(ConfigError, match="fractions of the images"):
        split_dataset(boxes, tmp_path / "new", val=val, test=test)


def test_a_used_folder_is_refused(boxes: DetectionData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty"):
        split_dataset(boxes, tmp_path)


def test_too_few_images_are_refused(boxes: DetectionData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 2 images; expected at least 3"):
        split_dataset(boxes.only({1, 2}), tmp_path / "new", test=0.2)


def test_parts_without_objects_are_refused(boxes: DetectionData, tmp_path: Path) -> None:
    empty = [
        changed(image, **{key: getattr(image, key)[:0] for key in ("boxes_xyxy", "labels", "crowd", "areas")})
        for image in boxes.images[1:]
    ]
    few = replace(boxes, images=(boxes.images[0], *empty))
    objects = len(boxes.images[0].labels)
    with pytest.raises(
        DataError, match=f"has {objects} objects?, so that val, test would have none; expected"
    ):
        split_dataset(few, tmp_path / "new", test=0.2)
    with pytest.raises(DataError, match="has 0 objects, so that train, val would have none"):
        split_dataset(replace(few, images=tuple(empty)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def with_masks(image: ImageRecord) -> ImageRecord:
    """Return an image whose objects have their boxes as masks, the last as run lengths of a crowd."""
    masks: list[Region | None] = [
        Polygons.of([[x0, y0, x1, y0, x1, y1, x0, y1]]) for x0, y0, x1, y1 in image.boxes_xyxy.tolist()
    ]
    masks[1:] = [rasterised(mask, (image.height, image.width)) for mask in masks[1:] if mask]
    return changed(image, masks=masks, crowd=np.arange(len(masks)) == 1, areas=image.areas / 2)


def test_shards_are_read_as_what_was_written(boxes: DetectionData, tmp_path: Path) -> None:
    data = replace(boxes, images=tuple(map(with_masks, boxes.images)))
    parts = split_dataset(data, tmp_path / "new", val=0.4, shards=2)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "classes.txt",
        *(f"train-{number:06}.tar" for number in range(3)),
        *(f"val-{number:06}.tar" for number in range(2)),
    ]
    for name, part in parts.items():
        read = read_dataset(tmp_path / "new", name)
        assert [category.name for category in read.categories] == ["red", "blue"]
        for image, written in zip(read.images, part.images, strict=True):
            assert image.path.name == written.path.name
            for field in ("boxes_xyxy", "labels", "crowd", "areas"):
                np.testing.assert_array_equal(getattr(image, field), getattr(written, field))
            regions = [
                [rasterised(mask, (each.height, each.width)) for mask in each.masks or () if mask]
                for each in (image, written)
            ]
            assert regions[0] == regions[1]
            assert len(regions[0]) == len(image.labels)


def test_names_that_differ_in_their_suffix_are_told_apart_in_shards(
    boxes: DetectionData, tmp_path: Path
) -> None:
    (tmp_path / "boxes" / "1.jpg").write_bytes(boxes.images[1].path.read_bytes())
    images = (boxes.images[0], changed(boxes.images[1], path=tmp_path / "boxes" / "1.jpg"), *boxes.images[2:])
    (tmp_path / "new").mkdir()
    write_shards(replace(boxes, images=images), tmp_path / "new", "train", 3)
    names = [image.path.name for image in read_dataset(tmp_path / "new").images]
    assert names == ["1_1.png", "1_2.jpg", "3.png", "4.png", "5.png", "6.png", "7.png", "8.png"]


def members(folder: Path) -> dict[str, bytes]:
    """Return the content of all members of the tars in a folder."""
    found: dict[str, bytes] = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {each.name: content.read() for each in tar if (content := tar.extractfile(each))}
    return found


@pytest.mark.parametrize("ids", [int, str, lambda number: f"n{number}"], ids=["numbers", "digits", "names"])
def test_licences_are_kept(boxes: DetectionData, tmp_path: Path, ids: Callable[[int], object]) -> None:
    file = Path(boxes.source)
    content = json.loads(file.read_text())
    of_dataset = {"info": {"year": 2026, "contributor": "Ä"}, "licenses": [{"id": 4, "name": "CC BY 2.0"}]}
    of_image = {"license": 4, "flickr_url": "https://flickr/1", "date_captured": None}
    for image in content["images"]:
        image.update(of_image if image["file_name"] == "1.png" else {}, id=ids(image["id"]))
    for annotation in content["annotations"]:
        annotation["image_id"] = ids(annotation["image_id"])
    data = read_dataset(write_json(file, {**of_dataset, **content}))
    split_dataset(data, tmp_path / "new", val=0.25)
    split_dataset(read_dataset(tmp_path / "new", "train"), tmp_path / "again", val=0.25, shards=8)
    written = [json.loads(path.read_text()) for path in (tmp_path / "new").glob("*/*.json")]
    assert [{key: each[key] for key in of_dataset} for each in written] == [of_dataset] * 2
    entries = {image["file_name"]: image for each in written for image in each["images"]}
    assert {name for name, image in entries.items() if image.keys() & of_image.keys()} == {"1.png"}
    assert entries["1.png"].items() >= of_image.items()
    assert json.loads((tmp_path / "again" / "info.json").read_text()) == of_dataset
    assert json.loads(members(tmp_path / "again")["1.json"]).items() >= of_image.items()


def test_a_dataset_without_licences_has_none_afterwards(boxes: DetectionData, tmp_path: Path) -> None:
    split_dataset(boxes, tmp_path / "new", shards=8)
    assert not (tmp_path / "new" / "info.json").exists()
    assert read_attribution(replace(boxes, source=write_json(tmp_path / "a.json", [1]))) is UNKNOWN
    assert (
        read_attribution(replace(boxes, source=write_json(tmp_path / "b.json", {"images": [1]}))) is UNKNOWN
    )


def test_shards_that_cannot_be_written(boxes: DetectionData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split got shards=0; expected"):
        split_dataset(boxes, tmp_path / "new", shards=0)
    with pytest.raises(ConfigError, match="is panoptic, which shards cannot express"):
        split_dataset(replace(boxes, panoptic=True), tmp_path / "new", shards=2)
    stuff = replace(boxes, categories=(boxes.categories[0], Category(id=2, name="sky", stuff=True)))
    with pytest.raises(ConfigError, match=r"has classes of stuff \(sky\), which shards cannot express"):
        split_dataset(stuff, tmp_path / "new", shards=2)
    assert not (tmp_path / "new").exists()


def renamed(boxes: DetectionData, name: str) -> DetectionData:
    file = Path(boxes.source)
    document = json.loads(file.read_text(encoding="utf-8"))
    document["categories"][1]["name"] = name
    return read_dataset(write_json(file, document))


@pytest.mark.parametrize(
    "name",
    [*("red ", "\tred", "red\u3000", "", " ", "r\ned", "red\r", "r\u2028\n"), "\ufeffred", "r" * 1001],
)
def test_names_that_lines_cannot_hold_are_refused_before_anything_is_written(
    boxes: DetectionData, tmp_path: Path, name: str
) -> None:
    data = renamed(boxes, name)
    with pytest.raises(
        ConfigError, match=r"cannot hold: .*; expected .*: rename these .*without shards"
    ) as caught:
        split_dataset(data, tmp_path / "new", shards=2)
    assert repr(name[:80]) in str(caught.value)
    assert not (tmp_path / "new").exists()
    split_dataset(data, tmp_path / "new")
    assert read_dataset(tmp_path / "new", "train").categories == data.categories


@pytest.mark.parametrize(
    "name", ["r e\td", "r\u2028ed", "r\x85ed", "r\x0bed", "7", "Grün", "赤", "\\udcff", "#"]
)
def test_names_that_lines_hold_are_kept_in_shards(boxes: DetectionData, tmp_path: Path, name: str) -> None:
    data = renamed(boxes, name)
    split_dataset(data, tmp_path / "new", val=0.25, shards=2)
    parts = [read_dataset(tmp_path / "new", part) for part in ("train", "val")]
    assert [category.name for category in parts[0].categories] == ["red", name]
    labels = [image.labels.tolist() for part in parts for image in part.images]
    assert sorted(labels) == sorted(image.labels.tolist() for image in data.images)


def test_names_in_shards_differ_also_from_those_with_an_id(boxes: DetectionData, tmp_path: Path) -> None:
    names = ("1.png", "1.jpg", "1_1.png", "1_2.bmp")
    images = []
    for image, name in zip(boxes.images, names, strict=False):
        (tmp_path / name).write_bytes(image.path.read_bytes())
        images.append(changed(image, path=tmp_path / name))
    (tmp_path / "new").mkdir()
    write_shards(replace(boxes, images=tuple(images)), tmp_path / "new", "train", 3)
    written = [image.path.name for image in read_dataset(tmp_path / "new").images]
    assert written == ["1_1.png", "1_2.jpg", "1_1-2.png", "1_2-2.bmp"]
