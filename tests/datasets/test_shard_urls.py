"""Datasets of shards at URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from dataset_writers import write_boxes, write_json
from shards import ANNOTATED, memory_storage, same_records, write_shards, write_tar

from querybox.data import (
    DataSettings,
    read_dataset,
    read_train_and_val,
    train_loader,
    validate,
)
from querybox.data.formats import shard_urls
from querybox.data.read import read_split
from querybox.data.training_images import TrainingImages, UnreadableImage
from querybox.errors import ConfigError, DataError, StorageError


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    with memory_storage() as storage:
        yield storage


def test_urls_are_opened_if_that_is_allowed(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    files = read_dataset(write_boxes(tmp_path / "files", (96, 64), sides=(16, 40)))
    folder = write_shards(files, tmp_path / "shards", 2)
    for path in folder.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    for urls in (
        "memory://bucket/train-{000..003}.tar",
        "memory://bucket/*.tar",
        "memory://bucket",
        [f"memory://bucket/train-{number:03}.tar" for number in range(4)],
    ):
        file = write_json(tmp_path / "boxes.yaml", {"train": urls, "names": ["red", "blue"]})
        with pytest.raises(ConfigError, match=r"memory://bucket.* of .*boxes\.yaml: is in the network"):
            read_dataset(file)
        data = read_dataset(file, allow_network=True)
        same_records(data, files)
        assert str(data.images[0].file).endswith("bucket/train-000.tar#1.png")
        assert data.images[0].file.read().content == files.images[0].path.read_bytes()  # type: ignore[union-attr]
    assert len([*(tmp_path / ".index").iterdir()]) == 8  # memory:/// and memory://
    assert validate(file, allow_network=True).usable
    settings = DataSettings(train=str(file), allow_network=True, workers=0, image_size=64)
    train, _ = read_train_and_val(settings)
    assert next(iter(train_loader(train, settings, batch_size=2, seed=0))).image_ids


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (
            {"train": ["memory://bucket/a.tar", "b.tar"]},
            "'b.tar' is not a URL; to train on shards of this disk",
        ),
        (
            {"train": "memory://bucket/a.tar", "nc": 2},
            "nc: Extra inputs are not permitted; expected URLs of shards",
        ),
        ({"train": "memory://bucket/{9..1}.tar"}, "stands for 0 shards; expected the first number first"),
        ({"train": "memory://bucket/{0..9999999}.tar"}, "stands for 10,000,000 shards; expected the first"),
        ({"train": "memory://none"}, "memory://none: no such file or folder"),
        (
            {"train": "memory://bucket"},
            r"memory://bucket: has no shards, but memory:///bucket/a.txt; expected",
        ),
        ({"train": "memory://bucket/none.tar"}, "memory://bucket/none.tar: no such file"),
        ({"train": "file:///etc/a.tar"}, "got the scheme 'file'; expected a path, or one of s3"),
    ],
)
def test_urls_that_cannot_be_used(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, content: dict[str, Any], error: str
) -> None:
    memory.pipe_file("/bucket/a.txt", b"")
    file = write_json(tmp_path / "boxes.yaml", content)
    with pytest.raises((ConfigError, DataError)) as caught:
        read_dataset(file, allow_network=True)
    assert error in str(caught.value)


def test_an_error_of_the_storage_is_told(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    file = write_json(tmp_path / "boxes.yaml", {"train": "memory://bucket/a.tar"})
    memory.pipe_file("/bucket/a.tar", write_tar(tmp_path / "a.tar", ANNOTATED).read_bytes())
    with (
        mock.patch.object(type(memory), "open", side_effect=PermissionError("expired")),
        pytest.raises(
            StorageError, match=r"memory://bucket/a\.tar: expired \(PermissionError\); check the URL"
        ),
    ):
        read_dataset(file, allow_network=True)
    data = read_dataset(file, allow_network=True)
    with mock.patch.object(type(memory), "cat_file", side_effect=TimeoutError("too slow")):
        with pytest.raises(StorageError, match=r"memory://bucket/a\.tar: too slow \(TimeoutError\)"):
            validate(file, allow_network=True)
        lost = TrainingImages(data, DataSettings(image_size=64), seed=0)[0, 0]
    assert isinstance(lost, UnreadableImage)
    assert "too slow" in lost.reason


def test_credentials_are_neither_shown_nor_stored(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    content = write_tar(tmp_path / "a.tar", {**ANNOTATED, "1.jpg": b"x", "2.json": b"{"}).read_bytes()
    for token in ("first", "second"):
        url = f"memory://bucket/a.tar?token={token}"
        memory.pipe_file(f"/bucket/a.tar?token={token}", content)
        file = write_json(tmp_path / "boxes.yaml", {"train": url, "names": ["cat"]})
        with mock.patch.object(shard_urls, "suffix", return_value=".tar"):
            data = read_split(file, None, allow_network=True)
        assert [str(image.file) for image in data.images] == ["memory://bucket/a.tar?token=***#0.jpg"]
        assert token not in repr([finding.to_json() for finding in data.findings]) + str(data.images[0].path)
    (index,) = (tmp_path / ".index").iterdir()
    assert not any(token in index.read_text() for token in ("first", "second"))
