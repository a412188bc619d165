"""COCO's panoptic format: JSON with segments_info, and PNGs of segments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import write_json
from jaxtyping import Int64
from panoptic_sets import CATEGORIES, Segment, choose_segments, draw_segments, write_panoptic, write_png
from PIL import Image

from querybox.data import DetectionData, read_dataset, validate
from querybox.data.formats import panoptic_png
from querybox.data.formats.panoptic_png import read_segments
from querybox.data.read import find_splits, read_split
from querybox.data.write import split_dataset
from querybox.errors import DataError
from querybox.masks import Rle
from querybox.structures import Category

SIZE = (21, 34)
Picture = tuple[Int64[np.ndarray, "H W"], dict[int, Segment]]


def pictures(count: int, *, crowds: bool = True) -> list[Picture]:
    rng = np.random.default_rng(0)
    return [choose_segments(rng, draw_segments(rng, SIZE, 8), crowds=crowds) for _ in range(count)]


def change(file: Path, spoil: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(file.read_text())
    spoil(content)
    return write_json(file, content)


def kinds(data: DetectionData) -> dict[str, int]:
    return {
        one.kind: one.count for one in data.findings if one.kind not in {"crowd", "negative", "subpixel_box"}
    }


def places(data: DetectionData, kind: str) -> list[str]:
    return [place.what for one in data.findings if one.kind == kind for place in one.places]


def test_every_segment_is_an_object_with_its_pixels(tmp_path: Path) -> None:
    drawn = pictures(3)
    write_panoptic(tmp_path, "train", drawn)
    write_panoptic(tmp_path, "val", drawn[:1])
    assert list(find_splits(tmp_path)) == ["train", "val"]
    data = read_dataset(tmp_path, "train")
    assert data.panoptic
    assert data.categories == CATEGORIES
    assert kinds(data) == {}
    assert any(record.crowd.any() for record in data.images)
    assert [record.id for record in data.images] == [1, 2, 3]
    for record, (ids, segments) in zip(data.images, drawn, strict=True):
        assert record.path == tmp_path / "train" / f"{record.id}.png"  # not the PNG with its name
        assert record.masks is not None
        assert len(record.masks) == len(record.labels) == len(segments)
        for index, (number, (category, crowd)) in enumerate(segments.items()):
            mask = record.masks[index]
            assert isinstance(mask, Rle)
            np.testing.assert_array_equal(mask.mask(), ids == number)
            assert tuple(record.boxes_xyxy[index]) == mask.box_xyxy
            assert record.areas[index] == (ids == number).sum()
            assert data.categories[record.labels[index]].id == category
            assert record.crowd[index] == crowd


def test_strips_of_a_png_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, segments = pictures(1)[0]
    write_png(tmp_path / "a.png", ids)
    whole, _ = read_segments(tmp_path / "a.png", SIZE, segments)
    monkeypatch.setattr(panoptic_png, "_CHUNK", 3 * SIZE[0])
    parts, unlisted = read_segments(tmp_path / "a.png", SIZE, segments)
    assert parts == whole
    assert len(unlisted) == 0


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_the_void_is_no_segment(tmp_path: Path, mode: str) -> None:
    colours = np.zeros((2, 3, len(mode)), dtype=np.uint8)
    colours[0, 1, :3] = 2, 3, 4
    Image.fromarray(colours, mode).save(tmp_path / "a.png")
    number = 2 + 256 * 3 + 256**2 * 4
    masks, unlisted = read_segments(tmp_path / "a.png", (2, 3), [5, number])
    assert {one: mask.area for one, mask in masks.items()} == {number: 1}
    assert len(unlisted) == 0


def test_a_set_beside_instances_is_read_by_its_path(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path, "train", pictures(1))
    content = json.loads(file.read_text())
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9]}]
    write_json(tmp_path / "annotations" / "instances_train.json", content)
    data = read_dataset(tmp_path)
    assert not data.panoptic
    assert data.images[0].masks is None
    assert data.categories == CATEGORIES  # isthing is read from every COCO file
    assert places(data, "copied_annotations") == ["COCO panoptic beside COCO"]
    assert read_dataset(file).panoptic
    assert len(read_dataset(file).images[0].masks or ()) > 1


@pytest.mark.parametrize("place", ["panoptic_train", "annotations"])
def test_pngs_may_be_in_the_root_or_beside_the_json(tmp_path: Path, place: str) -> None:
    file = write_panoptic(tmp_path, "train", pictures(2))
    content = json.loads(file.read_text())
    for image in content["images"]:  # other names, so that those in one folder differ
        (tmp_path / "train" / image["file_name"]).rename(tmp_path / "train" / f"photo-{image['id']}.png")
        image["file_name"] = f"photo-{image['id']}.png"
    write_json(file, content)
    (tmp_path / place).mkdir(exist_ok=True)
    for png in file.with_suffix("").iterdir():
        shutil.move(png, tmp_path / place / png.name)
    file.with_suffix("").rmdir()
    data = read_dataset(tmp_path)
    assert kinds(data) == {}
    assert [record.path.name for record in data.images] == ["photo-1.png", "photo-2.png"]


@pytest.mark.parametrize(
    ("name", "place"), [("panoptic_train", "panoptic_train"), ("train", "train"), ("panoptic_train", ".")]
)
def test_a_png_is_not_taken_for_an_image_that_is_missing(tmp_path: Path, name: str, place: str) -> None:
    file = write_panoptic(tmp_path, "train", pictures(2))
    pngs = [*file.with_suffix("").iterdir()]
    (file.parent / place).mkdir(exist_ok=True)
    for png in pngs:
        png.rename(file.parent / place / png.name)
    if place == ".":
        file.with_suffix("").rmdir()
    file = file.rename(file.with_name(f"{name}.json"))
    (tmp_path / "train" / "2.png").unlink()
    data = read_split(file, None)
    assert [record.path for record in data.images if not record.is_missing] == [tmp_path / "train" / "1.png"]
    with pytest.raises(DataError, match=r"1 of 2 images are missing or corrupt"):
        read_dataset(file)


def test_ids_may_be_strings(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for entry in (*content["images"], *content["annotations"]):
            key = "id" if "id" in entry else "image_id"
            entry[key] = f"frankfurt_{entry[key]}"

    data = read_dataset(change(write_panoptic(tmp_path, "val", pictures(2)), rename))
    assert kinds(data) == {"string_id": 2}
    assert [record.id for record in data.images] == [1, 2]


def test_what_segments_do_not_state_is_that_of_their_pixels(tmp_path: Path) -> None:
    drawn = pictures(1, crowds=False)

    def spoil(content: dict[str, Any]) -> None:
        for segment in content["annotations"][0]["segments_info"]:
            segment |= {"iscrowd": None, "area": 0, "bbox": []}

    data = read_dataset(change(write_panoptic(tmp_path, "val", drawn), spoil))
    assert kinds(data) == {}
    assert data.num_objects == len(drawn[0][1])


def test_a_size_of_0_is_that_of_the_image(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["images"][0].update(width=0, height=0)

    data = read_dataset(change(write_panoptic(tmp_path, "val", pictures(2)), spoil))
    assert kinds(data) == {}
    assert [(record.height, record.width) for record in data.images] == [SIZE, SIZE]
    assert [record.size_stated for record in data.images] == [False, True]


def of_mode(path: Path) -> None:
    Image.new("L", SIZE[::-1]).save(path)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


PNGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "annotations[1], image 2: there is no '2.png' in "),
    "of another size": (
        lambda path: write_png(path, np.zeros((4, 5))),
        "is 4x5 (height x width); its image is 21x34",
    ),
    "gray": (of_mode, "is in mode L; expected RGB"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as a PNG"),
    "no PNG": (lambda path: path.write_text("<html>"), "cannot be read as a PNG"),
    "a folder": (into_folder, "there is no '2.png' in "),
}


@pytest.mark.parametrize("fault", PNGS)
def test_an_image_with_a_broken_png_is_excluded(tmp_path: Path, fault: str) -> None:
    file = write_panoptic(tmp_path, "train", pictures(3))
    spoil, message = PNGS[fault]
    spoil(file.with_suffix("") / "2.png")
    data = read_split(tmp_path, None)
    assert kinds(data) == {"broken_panoptic": 1}
    assert message in places(data, "broken_panoptic")[0]
    assert [record.id for record in data.images] == [1, 3]
    assert set(data.excluded) == {2}
    with pytest.raises(DataError, match="1 of 3 images are missing or corrupt"):
        read_dataset(tmp_path)
    (report,) = validate(tmp_path).splits.values()
    assert report.excluded == 1


def test_segments_that_differ_are_named(tmp_path: Path) -> None:
    drawn = pictures(1, crowds=False)
    ids, segments = drawn[0]
    first, second, third, fourth = list(segments)[:4]

    def spoil(content: dict[str, Any]) -> None:
        infos = content["annotations"][0]["segments_info"]
        infos[0]["area"] += 1
        infos[1]["bbox"][2] += 5
        infos[2]["bbox"][2] -= 1  # as some tools write it
        del infos[3]
        infos.append({"id": 77, "category_id": 3, "area": 9, "bbox": [0, 0, 3, 3]})

    data = read_dataset(change(write_panoptic(tmp_path, "train", drawn), spoil))
    assert kinds(data) == {"absent_segment": 1, "unlisted_segment": 1, "mismatched_segment": 2}
    assert f"segment {first} has the area" in places(data, "mismatched_segment")[0]
    assert f"segment {second} has the bbox" in places(data, "mismatched_segment")[1]
    assert places(data, "absent_segment") == ["annotations[0], image 1: segment 77 has no pixel"]
    assert f"image 1: {fourth} in " in places(data, "unlisted_segment")[0]
    record = data.images[0]
    assert len(record.labels) == len(segments) - 1
    assert record.areas[0] == (ids == first).sum()
    assert (ids == third).any()


def first_segment(content: dict[str, Any]) -> dict[str, Any]:
    segment: dict[str, Any] = content["annotations"][0]["segments_info"][0]
    return segment


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown class": (
        lambda content: first_segment(content).update(category_id=99),
        r"annotations\[0\]\.segments_info\[0\] \(id \d+\) has category id 99",
    ),
    "repeated id": (
        lambda content: content["annotations"][0]["segments_info"].append(first_segment(content)),
        "is not the only one",
    ),
    "two annotations of an image": (
        lambda content: content["annotations"].append(content["annotations"][0]),
        "1 occurs 2 times",
    ),
    "void": (
        lambda content: first_segment(content).update(id=0),
        r"annotations\[0\]: segments_info\[0\].id: Input should be greater than or equal to 1",
    ),
    "more than 24 bits": (
        lambda content: first_segment(content).update(id=2**24),
        r"segments_info\[0\].id: Input should be less than or equal to 16777215",
    ),
    "no isthing": (lambda content: content["categories"][1].pop("isthing"), r"categories\[1\]: isthing: "),
    "no list": (lambda content: content.update(images=3), "expected"),
    "no images": (lambda content: content.pop("images"), "has no images"),
    "no entry": (lambda content: content["annotations"].append(3), r"annotations\[1\]: "),
    "no segments": (
        lambda content: content["annotations"].append({"image_id": 1, "file_name": "x"}),
        r"annotations\[1\]: segments_info: Field required",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_malformed_files_are_refused(tmp_path: Path, fault: str) -> None:
    spoil, message = REFUSED[fault]
    file = change(write_panoptic(tmp_path, "train", pictures(1)), spoil)
    with pytest.raises(DataError, match=message) as told:
        read_dataset(file)
    assert str(told.value).count("expected COCO") <= 1


def test_images_without_annotations_and_the_reverse_are_not_used(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["images"].append({"id": 9, "file_name": "1.png"})
        content["annotations"][1]["image_id"] = 10

    data = read_dataset(change(write_panoptic(tmp_path, "train", pictures(2)), spoil))
    assert kinds(data) == {"absent_image": 1, "unlabeled_image": 2}
    assert places(data, "absent_image") == ["annotations[1] of image 10"]
    assert [record.id for record in data.images] == [1]


def test_truncated_json_is_refused(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path, "train", pictures(1))
    file.write_text(file.read_text()[:-30])
    with pytest.raises(DataError, match="expected COCO panoptic JSON"):
        read_dataset(file)


def test_parts_of_a_split_keep_what_is_stuff(tmp_path: Path) -> None:
    data = read_dataset(write_panoptic(tmp_path / "data", "train", pictures(4)))
    split_dataset(data, tmp_path / "parts", val=0.5)
    part = read_dataset(tmp_path / "parts", "val")
    assert part.categories == CATEGORIES
    assert Category(id=8, name="glass", stuff=True) in part.categories
    assert all(record.masks is not None for record in part.images)


def test_parts_of_a_split_keep_the_segments_of_each_id_of_an_image(tmp_path: Path) -> None:
    def repeat(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"{(image['id'] + 1) // 2}.png"  # 1 1 2 2 3 3

    file = write_panoptic(tmp_path / "data", "train", pictures(6))
    data = read_dataset(change(file, repeat))
    assert kinds(data)["repeated_image"] == 6
    split_dataset(data, tmp_path / "parts", val=0.5)
    parts = [read_dataset(tmp_path / "parts", name) for name in ("train", "val")]
    masks = {image.id: image.masks for part in parts for image in part.images}
    assert masks == {image.id: image.masks for image in data.images}


def test_parts_of_a_split_keep_every_pixel(tmp_path: Path) -> None:
    """Those of segments, of crowd regions and of void."""
    data = read_dataset(write_panoptic(tmp_path / "data", "train", pictures(6, crowds=True)))
    split_dataset(data, tmp_path / "parts", val=0.5)
    parts = [read_dataset(tmp_path / "parts", name) for name in ("train", "val")]
    assert all(part.panoptic for part in parts)
    assert {one.severity for part in parts for one in part.findings} <= {"note"}
    images = {image.id: image for part in parts for image in part.images}
    assert images.keys() == {image.id for image in data.images}
    for image in data.images:
        found = images[image.id]
        assert found.masks == image.masks
        for name in ("labels", "crowd", "areas", "boxes_xyxy"):
            np.testing.assert_array_equal(getattr(found, name), getattr(image, name))
