"""Parquet files whose images are read where they are: at URLs, and on this disk if a file names them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_writers import write_boxes, write_json
from shards import jpeg, memory_storage, same_records, write_images_and_boxes

from querybox.data import (
    DataSettings,
    DetectionData,
    ImageRecord,
    parquet_rows,
    read_dataset,
    train_loader,
    validate,
)
from querybox.data.formats import parquet_index
from querybox.data.read import read_split
from querybox.data.sampler import BatchSampler
from querybox.data.shards import ShardImage
from querybox.data.training_images import TrainingImages, UnreadableImage
from querybox.errors import DataError

BOX: dict[str, Any] = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0]}


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    with memory_storage() as storage:
        yield storage


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    parquet_rows._held.clear()
    yield
    parquet_rows._held.clear()


@pytest.fixture
def files(tmp_path: Path) -> DetectionData:
    """Eight images of 96 x 64 pixels."""
    return read_dataset(write_boxes(tmp_path / "files", (96, 64), sides=(16, 40), kept={4: 1, 8: 0}))


@pytest.fixture
def named(files: DetectionData, tmp_path: Path) -> Path:
    """A file that names two Parquet files of the images on this disk, with two row groups each."""
    write_images_and_boxes(files, tmp_path / "shards" / "data", 4, rows_a_group=2)
    return write_json(tmp_path / "shards" / "boxes.yaml", {"train": "data/train-*.parquet"})


def write(file: Path, *images: tuple[bytes | None, Any], **columns: Any) -> Path:
    """Write a Parquet file of images with their objects, and the file that names it."""
    rows = [{"image": {"bytes": content, "path": None}, "objects": boxes} for content, boxes in images]
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        table = table.append_column(name, values)
    pq.write_table(table, file, row_group_size=2)
    return write_json(file.with_suffix(".yaml"), {"train": file.name, "names": ["cat"]})


def test_images_in_place_are_those_that_are_unpacked(named: Path, files: DetectionData) -> None:
    data = read_dataset(named)
    same_records(data, files)
    unpacked = read_dataset(named.parent / "data")
    same_records(data, unpacked)
    assert [category.name for category in data.categories] == ["red", "blue"]
    for record, other in zip(data.images, unpacked.images, strict=True):
        assert record.file.read().content == other.path.read_bytes()  # type: ignore[union-attr]
    assert str(data.images[5].file) == f"{named.parent}/data/train-001.parquet#6.png"
    assert [record.unit for record in data.images[2:6]] == [
        (f"{named.parent}/data/train-{number}.parquet", group)
        for number, group in (("000", 1), ("000", 1), ("001", 0), ("001", 0))
    ]
    assert len([*(named.parent / ".index").glob("*.json")]) == 2
    with mock.patch.object(parquet_index, "find_columns", side_effect=AssertionError):
        same_records(read_dataset(named), files)


def test_urls_of_parquet_files(
    named: Path, files: DetectionData, tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    for path in (named.parent / "data").glob("*.parquet"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    data = read_dataset("memory://bucket/*.parquet", allow_network=True)
    same_records(data, files)
    assert data.source == "memory://bucket/*.parquet"
    assert validate("memory://bucket/train-{000..001}.parquet", allow_network=True).usable
    with mock.patch.object(type(memory), "open", side_effect=PermissionError("expired")):
        parquet_rows._held.clear()
        lost = TrainingImages(data, DataSettings(image_size=64), seed=0)[0, 0]
    assert isinstance(lost, UnreadableImage)
    assert "expired (PermissionError); check the URL" in lost.reason


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_files(named: Path, files: DetectionData, workers: int) -> None:
    settings = DataSettings(image_size=64, workers=0)
    data = read_dataset(named)
    for epoch in range(2):
        batches, expected = (
            train_loader(each, settings.replace(workers=count), batch_size=4, seed=0)
            for each, count in ((data, workers), (files, 0))
        )
        for loader in (batches, expected):
            loader.batch_sampler.set_epoch(epoch)
        for batch, other in zip(batches, expected, strict=True):
            assert batch.image_ids == other.image_ids
            np.testing.assert_array_equal(batch.pixels, other.pixels)


def size_of(record: ImageRecord) -> int:
    """Return the number of bytes of an image in a shard."""
    assert isinstance(record.file, ShardImage)
    return record.file.size


def test_a_row_group_is_read_once_while_its_images_are_shuffled(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With mosaics, too, whose images are of the same row group; and no more are held than two."""
    data = read_dataset(named)
    monkeypatch.setattr(parquet_rows, "HELD", 3 * sum(map(size_of, data.images[:2])))
    parquet_rows._held.clear()
    read = mock.Mock(side_effect=parquet_rows.read_row_group)
    monkeypatch.setattr(parquet_rows, "read_row_group", read)
    settings = DataSettings(image_size=64, workers=0, shuffle_shards=2, mosaic=1)
    loader = train_loader(data, settings, batch_size=2, seed=0)
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        assert len([*loader]) == 4
        assert len(parquet_rows._held) <= 3
    assert read.call_count <= 3 * 4
    assert {call.args[1] for call in read.call_args_list} == {0, 1}


def test_processes_have_different_images_of_the_same_row_groups(named: Path) -> None:
    data = read_dataset(named)
    units = [record.unit for record in data.images]
    for epoch in range(5):
        parts = []
        for rank in (0, 1):
            sampler = BatchSampler(data, 2, 0, rank, 2, shuffle_shards=1)
            sampler.set_epoch(epoch)
            parts.append([key.image_index for batch in sampler for key in batch])
        assert sorted(parts[0] + parts[1]) == list(range(8))
        assert [units[index] for index in parts[0]] == [units[index] for index in parts[1]]


@pytest.mark.parametrize(
    ("image", "boxes", "kind", "what"),
    [
        (None, BOX, "broken_image", "#row 1: has no content; expected an embedded image"),
        (b"no image", BOX, "broken_image", "#000001.bin: cannot be read as an image"),
        (jpeg(), {"bbox": [[1.0]], "category": [0]}, "malformed", "#row 1: "),
        (
            jpeg(),
            {"bbox": BOX["bbox"] * 2, "category": [0]},
            "malformed",
            "#row 1: lists in 'objects' differ",
        ),
        (jpeg(), {"bbox": [[1.0, float("nan"), 3.0, 4.0]], "category": [0]}, "nan_box", "#row 1, object 1"),
        (
            jpeg(),
            {"bbox": [[1.0, 2.0, 3.0, float("inf")]], "category": [0]},
            "infinite_box",
            "#row 1, object 1",
        ),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, image: bytes, boxes: Any, kind: str, what: str) -> None:
    report = validate(write(tmp_path / "a.parquet", (jpeg(), BOX), (image, boxes)), max_corrupt=0.9)
    findings = {finding.kind: finding for finding in report.splits["train"].findings}
    assert what in findings[kind].places[0].what


def test_layouts_of_objects(tmp_path: Path) -> None:
    of_objects = write(
        tmp_path / "a.parquet", (jpeg(), [{"bbox": BOX["bbox"][0], "label": "cat"}]), (jpeg(), [])
    )
    rows = [{"image": {"bytes": jpeg()}, "bbox": BOX["bbox"], "label": [0], "width": 60.0, "height": 40.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    of_columns = write_json(tmp_path / "b.yaml", {"train": "b.parquet", "names": ["cat"]})
    for file, counts in ((of_objects, [1, 0]), (of_columns, [1])):
        data = read_dataset(file)
        assert [len(record.labels) for record in data.images] == counts
        assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 4, 6]]
        assert [(category.id, category.name) for category in data.categories] == [(0, "cat")]
    assert data.images[0].size_stated


def test_damaged_and_unsuitable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = write(tmp_path / "a.parquet", (jpeg(), BOX), (jpeg(), BOX))
    path = named.with_suffix(".parquet")
    content = path.read_bytes()

    def found() -> str:
        (finding,) = read_split(named, None).findings
        assert finding.kind == "malformed"
        return finding.places[0].what

    for damaged in (
        content[:-20],
        content[: len(content) // 2],
        b"",
        content[:4] + bytes(900) + content[904:],
    ):
        path.write_bytes(damaged)
        assert found().startswith(f"{path}: cannot be read as Parquet (")
    pq.write_table(pa.table({"image": ["a.jpg"], "objects": [BOX]}), path)
    assert "has paths in 'image' in place of images" in found()
    pq.write_table(pa.table({"text": ["a"]}), path)
    assert "has the columns text; expected 'image'" in found()
    path.write_bytes(content)
    monkeypatch.setattr(parquet_rows, "MAX_GROUP", 100)
    assert "bytes in row group 0, which is read as a whole; expected at most 100" in found()
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet: no such file; check the path"):
        read_split(named, None)


def test_a_file_that_changes_makes_its_images_unreadable(named: Path) -> None:
    data = read_dataset(named)
    first, second = sorted((named.parent / "data").glob("*.parquet"))
    write(first, (jpeg(), BOX))
    second.write_bytes(b"short")
    images = TrainingImages(data, DataSettings(image_size=64), seed=0)
    reasons = [lost.reason for lost in (images[0, 0], images[7, 0]) if isinstance(lost, UnreadableImage)]
    assert "train-000.parquet: has no image of" in reasons[0]
    assert "train-001.parquet: cannot be read as Parquet" in reasons[1]


@pytest.mark.parametrize("place", ["/etc/a.parquet", "../a.parquet", "x/../../a.parquet"])
def test_a_file_names_nothing_outside_of_its_folder(tmp_path: Path, place: str) -> None:
    with pytest.raises(
        DataError, match=rf"^{place}: is outside of {tmp_path}; expected shards in the folder"
    ):
        read_dataset(write_json(tmp_path / "a.yaml", {"train": place}))


def test_a_place_in_an_index_is_checked(named: Path) -> None:
    """An index may have come with the files."""
    read_dataset(named)
    first = min((named.parent / ".index").glob("*.json"))
    content = json.loads(first.read_text())
    for place in ({"group": 99}, {"start": 1 << 40}, {"size": 1}):
        first.write_text(json.dumps({**content, "samples": [content["samples"][0] | place]}))
        report = validate(named, max_corrupt=0.9)
        (finding,) = (each for each in report.splits["train"].findings if each.kind == "broken_image")
        assert "has no image of" in finding.places[0].what
