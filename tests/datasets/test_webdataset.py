from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import coco, write_boxes, write_images, write_json, yolo_text
from layouts import IMAGES, NAMES, kinds, require_both
from shards import ANNOTATED, jpeg, same_records, write_shards, write_tar

from querybox.data import (
    DataSettings,
    DetectionData,
    read_dataset,
    read_train_and_val,
    split_dataset,
    train_loader,
    validate,
)
from querybox.data.formats import tar_index
from querybox.data.read import read_split
from querybox.data.sampler import BatchSampler
from querybox.data.training_images import TrainingImages, UnreadableImage
from querybox.errors import ConfigError, DataError

A, B = (image.name.removesuffix(".png") for image in IMAGES)


@pytest.fixture
def files(tmp_path: Path) -> DetectionData:
    """Eight images of 96 x 64 pixels."""
    path = write_boxes(tmp_path / "files", (96, 64), sides=(16, 40), kept={4: 1, 8: 0})
    return read_dataset(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the two images of the layouts by name."""
    write_images(folder, IMAGES)
    return {image.name: (folder / image.name).read_bytes() for image in IMAGES}


def objects(number: int) -> list[dict[str, Any]]:
    """Return the annotations of an image in COCO's format."""
    return [item for item in coco(IMAGES, NAMES)["annotations"] if item["image_id"] == number + 1]


def by_name(number: int) -> list[dict[str, Any]]:
    """Return the annotations of an image with names of classes."""
    return [
        {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_name": name, "category_id": 7}
        for name, (x0, y0, x1, y1) in IMAGES[number].objects
    ]


def as_lists(number: int) -> dict[str, Any]:
    """Return the objects of an image as lists by key."""
    return {
        "bbox": [item["bbox"] for item in by_name(number)],
        "category": [item["category_name"] for item in by_name(number)],
    }


CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
JSON = {
    "list": [by_name(number) for number in (0, 1)],
    "annotations": [{"annotations": by_name(number)} for number in (0, 1)],
    "objects": [{"objects": by_name(number), "image": {"width": None}} for number in (0, 1)],
    "objects by key": [{"objects": as_lists(number)} for number in (0, 1)],
    "a COCO file of one image": [
        {"images": [], "annotations": objects(number), "categories": CATEGORIES} for number in (0, 1)
    ],
}


@pytest.mark.parametrize("annotations", JSON.values(), ids=JSON)
def test_annotations_in_json(tmp_path: Path, annotations: list[object]) -> None:
    images = contents(tmp_path / "images")
    members: dict[str, bytes | None] = {"./": None}
    for (name, content), annotation in zip(images.items(), annotations, strict=True):
        members[f"./x/{name}"] = content
        members[f"./x/{Path(name).stem}.json"] = json.dumps(annotation).encode()
        members[f"./x/{Path(name).stem}.txt"] = b"a dog beside a cat"
    require_both(read_dataset(write_tar(tmp_path / "a.tar", members)))


@pytest.mark.parametrize("box", [{}, {"bbox": None}, {"bbox": []}])
def test_without_a_box_that_of_the_mask_is_used(tmp_path: Path, box: dict[str, Any]) -> None:
    item = {**box, "category": "cat", "segmentation": [[3, 4, 20, 4, 20, 9]]}
    path = write_tar(
        tmp_path / "a.tar", {**ANNOTATED, "1.jpg": jpeg(), "1.json": json.dumps([item]).encode()}
    )
    data = read_dataset(path)
    assert data.images[1].boxes_xyxy.tolist() == [[3, 4, 20, 9]]
    assert [place.what for one in data.findings if one.kind == "boxed_shape" for place in one.places] == [
        f"{path}#1.json, object 1"
    ]


def test_a_mask_of_another_size_gives_no_box(tmp_path: Path) -> None:
    item = {"category": "cat", "segmentation": {"size": [2, 3], "counts": [0, 6]}}
    path = write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.json": json.dumps([item]).encode()})
    with pytest.raises(DataError, match=r"1\.json, object 1, image 1: has no bbox, and a mask of 2x3 in "):
        read_dataset(path)


def test_an_empty_mask_is_that_of_an_image_of_the_shard(tmp_path: Path) -> None:
    item = {"bbox": [3, 4, 9, 9], "category": "cat", "segmentation": [[2, 2, 14, 2, 5, 2]]}
    members = {"1.jpg": jpeg(), "1.json": json.dumps({"objects": [item]}).encode()}
    data = read_dataset(write_tar(tmp_path / "a.tar", members))
    (finding,) = [one for one in data.findings if one.kind == "empty_mask"]
    assert [place.path for place in finding.places] == [data.images[0].file]


def test_labels_of_yolo_need_names_of_classes(tmp_path: Path) -> None:
    """The labels may be behind all images; the order is that of the images."""
    images = contents(tmp_path / "images")
    labels = {f"{Path(image.name).stem}.txt": yolo_text(image, NAMES).encode() for image in reversed(IMAGES)}
    path = write_tar(tmp_path / "shards" / "a.tar", {**images, **labels})
    with pytest.raises(DataError, match=r"class names not found; add a classes\.txt .* beside the shards"):
        read_dataset(path.parent)
    (path.parent / "classes.txt").write_text("cat\ndog\n")
    require_both(read_dataset(path.parent))
    assert read_dataset(path.parent).images[0].size_stated is False


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_the_number_of_a_class_is_that_of_its_line(tmp_path: Path, kind: str) -> None:
    objects = [{"bbox": [1, 2, 10, 20], "category": number} for number in (2, 0, 1)]
    lines = "".join(f"{number} 0.5 0.5 0.2 0.2\n" for number in (2, 0, 1))
    texts = {"txt": lines, "json": json.dumps(objects)}
    image = next(iter(contents(tmp_path / "images").items()))
    path = write_tar(tmp_path / "shards" / "a.tar", dict([image, (f"a.{kind}", texts[kind].encode())]))
    assert image[0].startswith("a.")
    names = path.parent / "classes.txt"
    names.write_text("cat\n\ndog\n\n")
    data = read_dataset(path.parent)
    assert [(category.id, category.name) for category in data.categories] == [(0, "cat"), (1, ""), (2, "dog")]
    assert data.images[0].labels.tolist() == [2, 0, 1]
    assert "unnamed_category" in kinds(data)
    names.write_text("cat\ndog\n")
    with pytest.raises(DataError, match="class 2; the dataset defines 0, 1"):
        read_dataset(path.parent)
    names.write_text("cat\ndog\ndog\n")
    with pytest.raises(DataError, match="'dog' is the name of 2 classes: 1, 2"):
        read_dataset(path.parent)


def test_names_of_classes_that_are_not_in_their_file_are_an_error(tmp_path: Path) -> None:
    """They made the order of the classes alphabetical."""
    names = tmp_path / "classes.txt"
    names.write_text("dog\ncat\nowl\n")
    item = {"bbox": [1, 2, 10, 20], "category": "cat"}
    members = {"1.jpg": jpeg(), "1.json": json.dumps([item, {**item, "category": "dog"}]).encode()}
    path = write_tar(tmp_path / "a.tar", members).parent
    assert [category.name for category in read_dataset(path).categories] == ["dog", "cat", "owl"]
    names.write_text("dog\nowl\n")
    with pytest.raises(DataError, match="does not define: 'cat'; it defines 'dog', 'owl'; correct"):
        read_dataset(path)


def test_splits_and_order_are_those_of_the_names(tmp_path: Path, files: DetectionData) -> None:
    for folder, name in (
        (tmp_path / "a", "boxes-train2017"),
        (tmp_path / "a", "boxes-val"),
        (tmp_path / "b", ""),
    ):
        write_shards(files, folder, 1, name=name)
    (tmp_path / "b" / "-000.tar").rename(tmp_path / "b" / "-10.tar")
    (tmp_path / "b" / "-007.tar").rename(tmp_path / "b" / "-9.tar")
    train, val = read_train_and_val(DataSettings(train=str(tmp_path / "a")))
    assert val is not None
    assert len(train.images) == len(val.images) == 8
    assert [image.path.name for image in read_dataset(tmp_path / "b").images] == [
        *("2.png", "3.png", "4.png", "5.png", "6.png", "7.png", "8.png", "1.png")
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_shards_are_those_of_files(tmp_path: Path, files: DetectionData, workers: int) -> None:
    data = read_dataset(write_shards(files, tmp_path / "shards", 3))
    same_records(data, files)
    settings = DataSettings(image_size=64, workers=0, mosaic=0.5)
    batches, expected = (
        list(train_loader(each, settings.replace(workers=count), batch_size=4, seed=0))
        for each, count in ((data, workers), (files, 0))
    )
    assert len(batches) == 2
    for batch, other in zip(batches, expected, strict=True):
        assert batch.image_ids == other.image_ids
        np.testing.assert_array_equal(batch.pixels, other.pixels)
        for target, one in zip(batch.targets, other.targets, strict=True):
            np.testing.assert_array_equal(target.boxes, one.boxes)


def test_the_images_of_a_few_shards_are_shuffled_together(tmp_path: Path, files: DetectionData) -> None:
    """All processes read the same shards at a time, and different images of them."""
    data = read_dataset(write_shards(files, tmp_path / "shards", 2))
    shards = [(image.id - 1) // 2 for image in data.images]
    orders = []
    for epoch in range(20):
        whole, *parts = (
            list(sampled(data, epoch, rank, processes)) for rank, processes in ((0, 1), (0, 2), (1, 2))
        )
        assert [*zip(*parts, strict=True)] == [*zip(whole[::2], whole[1::2], strict=True)]
        assert sorted(whole) == list(range(8))
        read = [{shards[index] for index in whole[start : start + 4]} for start in (0, 4)]
        assert [len(each) for each in read] == [2, 2]
        orders.append(tuple(whole))
    assert len(set(orders)) > 15
    assert len({frozenset(shards[index] for index in order[:4]) for order in orders}) > 3
    assert orders[3] == tuple(sampled(data, 3, 0, 1))


def sampled(data: DetectionData, epoch: int, rank: int, processes: int) -> Iterator[int]:
    """Yield the images that a process reads, in order."""
    sampler = BatchSampler(data, 2, 0, rank, processes, shuffle_shards=2)
    sampler.set_epoch(epoch)
    for batch in sampler:
        yield from (key.image_index for key in batch)


def test_shuffling_shards_needs_shards(files: DetectionData) -> None:
    with pytest.raises(
        ConfigError, match=r"'data\.shuffle_shards' is set, but .*1\.png of .* is in no shard"
    ):
        train_loader(files, DataSettings(shuffle_shards=2, workers=0), batch_size=2, seed=0)


BOX = ANNOTATED["0.json"] or b""


@pytest.mark.parametrize(
    ("members", "kind", "what"),
    [
        ({"1.json": BOX}, "unmatched_label", "#1.json"),
        ({"1.jpg": jpeg()}, "unlabeled_image", "#1.jpg"),
        ({"0.png": jpeg()}, "malformed", "#0.png: has the name of another member"),
        ({"0.JSON": BOX}, "malformed", "#0.JSON: has the name of another member"),
        ({"1.jpg": jpeg(), "1.json": b"{"}, "malformed", "#1.json: EOF while parsing"),
        ({"1.jpg": jpeg(), "1.json": b"\xff"}, "malformed", "expected UTF-8 text"),
        (
            {"1.jpg": jpeg(), "1.json": b'{"shapes": []}'},
            "malformed",
            "#1.json: has the keys shapes; expected JSON",
        ),
        ({"1.jpg": jpeg(), "1.json": b"7"}, "malformed", "#1.json: has int; expected JSON"),
        ({"1.jpg": jpeg(), "1.json": b"[7]"}, "malformed", "has values that are not objects"),
        ({"1.jpg": jpeg(), "1.json": b'[{"bbox": [1], "category": 1}]'}, "malformed", "bbox[0][1]: "),
        ({"1.jpg": jpeg(), "1.json": b'[{"bbox": [1, 2, 3, 4]}]'}, "malformed", "categories[0]"),
        ({"1.jpg": b"x", "1.json": b"[]"}, "broken_image", "#1.jpg: cannot be read as an image"),
        (
            {"1.jpg": jpeg(), "1.json": b'{"objects": [], "width": 7, "height": 7}'},
            "other_size",
            "is 40x60 (height x width) but its annotations say 7x7",
        ),
    ],
)
def test_what_is_wrong_is_found(
    tmp_path: Path, members: dict[str, bytes | None], kind: str, what: str
) -> None:
    report = validate(write_tar(tmp_path / "train.tar", {**ANNOTATED, **members}), max_corrupt=0.9)
    findings = {finding.kind: finding for finding in report.splits["train"].findings}
    assert what in findings[kind].places[0].what


def test_junk_and_other_members_are_passed_over(tmp_path: Path) -> None:
    others = {"._0.jpg": b"x", "__MACOSX/0.jpg": b"x", "0.cls": b"1", "README.md": b"", "a/": None}
    data = read_dataset(write_tar(tmp_path / "train.tar", {**ANNOTATED, **others}))
    assert kinds(data) == {}
    assert len(data.images) == 1


def test_a_damaged_tar_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", ANNOTATED)
    content = path.read_bytes()
    write_tar(tmp_path / "train-1.tar", ANNOTATED)
    for damaged in (content[:700], content[:2000], b"", bytes(512) + b"x" * 512, b"\x1f\x8b" + bytes(2000)):
        path.write_bytes(damaged)
        (finding,) = read_split(tmp_path, None).findings
        assert finding.kind == "malformed"
        assert finding.places[0].what.startswith(f"{path}: ")
    path.unlink()
    with pytest.raises(DataError, match=r"contains archives \(train-1\.tar\)"):
        read_dataset(write_tar(tmp_path / "train-1.tar", {"0.jpg": jpeg()}).parent)


@pytest.mark.parametrize(
    ("length", "prefix", "what"),
    [
        (700, b"", r"is damaged or cut off|cannot be read as a tar from byte 1,536 on"),
        (0, b"", "cannot be read as a tar from byte 0 on"),
        (5000, b"\x1f\x8b", "is compressed by gzip; expected a tar without compression: decompress it"),
        (5000, b"(\xb5/\xfd", "is compressed by zstd"),
    ],
)
def test_a_damaged_tar_alone_is_no_archive_to_unpack(
    tmp_path: Path, length: int, prefix: bytes, what: str
) -> None:
    path = write_tar(tmp_path / "train-0.tar", ANNOTATED)
    path.write_bytes((prefix + path.read_bytes())[:length])
    for place in (tmp_path, path):
        with pytest.raises(DataError, match=rf"^{path}: (the tar )?({what})"):
            read_dataset(place)


def test_sizes_that_a_tar_states_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MAX_CONTENT", len(jpeg()))
    monkeypatch.setattr(tar_index, "MAX_ANNOTATION", 100)
    members = {**ANNOTATED, "1.jpg": jpeg() + b"x", "2.jpg": jpeg(), "2.json": bytes(101)}
    found = {
        one.kind: one.places[0].what
        for one in read_split(write_tar(tmp_path / "a.tar", members), None).findings
    }
    assert "#1.jpg: is larger than" in found["too_large_image"]
    assert "#2.json: has 101 bytes; expected at most 100" in found["malformed"]
    monkeypatch.setattr(tar_index, "MAX_TEXT", len(BOX))
    members = {**ANNOTATED, "1.json": b"[]"}
    (finding,) = read_split(write_tar(tmp_path / "b.tar", members), None).findings
    assert "has more than" in finding.places[0].what


def test_links_and_names_that_lead_elsewhere_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    inside = tmp_path / "inside"
    inside.mkdir()
    with tarfile.open(inside / "train.tar", "w") as tar:
        for name, content in {"../../evil.jpg": jpeg(), "../../evil.json": BOX, "/etc/x.jpg": jpeg()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
            tar.addfile(member)
    data = read_dataset(inside, max_corrupt=1)
    assert kinds(data) == {"broken_image": 2, "unlabeled_image": 1}
    assert [str(image.file) for image in data.images] == [f"{inside / 'train.tar'}#../../evil.jpg"]
    assert sorted(each.name for each in inside.iterdir()) == [".index", "train.tar"]
    split = split_dataset(read_dataset(write_shards_of_two(tmp_path / "two")), tmp_path / "parts", val=0.5)
    assert len(split["val"].images) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["inside", "parts", "secret.jpg", "two"]


def write_shards_of_two(folder: Path) -> Path:
    folder.mkdir()
    write_tar(
        folder / "a.tar", {"../../0.jpg": jpeg(), "../../0.json": BOX, "/1.jpg": jpeg(), "/1.json": BOX}
    )
    return folder


def test_images_beside_tars_are_another_dataset(tmp_path: Path) -> None:
    """Whose tars may be a backup."""
    write_images(tmp_path, IMAGES)
    write_json(tmp_path / "train.json", coco(IMAGES, NAMES))
    write_tar(tmp_path / "backup.tar", ANNOTATED)
    require_both(read_dataset(tmp_path))


def test_a_shard_that_vanishes_makes_its_images_unreadable(tmp_path: Path, files: DetectionData) -> None:
    data = read_dataset(write_shards(files, tmp_path / "shards", 4))
    images = TrainingImages(data, DataSettings(image_size=64), seed=0)
    (tmp_path / "shards" / "train-000.tar").unlink()
    (tmp_path / "shards" / "train-001.tar").write_bytes(b"short")
    reasons = [lost.reason for lost in (images[0, 0], images[7, 0]) if isinstance(lost, UnreadableImage)]
    assert "train-000.tar: no such file" in reasons[0]
    assert "train-001.tar: got 0 of" in reasons[1]


def test_memory_does_not_depend_on_the_size_of_a_shard(tmp_path: Path) -> None:
    padding = bytes(1 << 20)
    members = {
        f"{number}{suffix}": content
        for number in range(40)
        for suffix, content in ((".jpg", jpeg() + padding), (".json", BOX))
    }
    path = write_tar(tmp_path / "train.tar", members)
    del members
    tracemalloc.start()
    data = read_dataset(path)
    for image in data.images:
        image.file.read()  # type: ignore[union-attr]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.images) == 40
    assert peak < 12 << 20  # of 40
