"""Datasets of shards at URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from dataset_writers import write_boxes, write_json
from shards import ANNOTATED, memory_storage, same_records, write_shards, write_tar
from tiny_models import SMALLEST

from querybox.cli.main import main
from querybox.data import (
    DataSettings,
    DetectionData,
    read_dataset,
    read_train_and_val,
    storage,
    train_loader,
    validate,
)
from querybox.data.formats import shard_urls
from querybox.data.read import find_splits, read_split
from querybox.data.training_images import TrainingImages, UnreadableImage
from querybox.detector import Detector
from querybox.errors import ConfigError, DataError, StorageError
from querybox.structures import Preprocessing
from querybox.training.data import read_splits
from querybox.training.overrides import read_settings
from querybox.training.start import locate


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
        with pytest.raises(ConfigError, match=r"memory://bucket.* of .*boxes\.yaml: is on the network"):
            read_dataset(file)
        data = read_dataset(file, allow_network=True)
        same_records(data, files)
        assert str(data.images[0].file).endswith("bucket/train-000.tar#1.png")
        assert data.images[0].file.read().content == files.images[0].path.read_bytes()  # type: ignore[union-attr]
    assert len([*(tmp_path / ".index").glob("*.json")]) == 8  # memory:/// and memory://
    assert validate(file, allow_network=True).usable
    settings = DataSettings(train=str(file), allow_network=True, workers=0, image_size=64)
    train, _ = read_train_and_val(settings)
    assert next(iter(train_loader(train, settings, batch_size=2, seed=0))).image_ids


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (
            {"train": ["memory://bucket/a.tar", "b.txt"]},
            "'b.txt' is neither a URL nor a path of .tar or .parquet files",
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


@pytest.fixture
def bucket(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> DetectionData:
    """A dataset whose eight images are in the four shards of a split, and in the two of another one."""
    files = read_dataset(write_boxes(tmp_path / "files", (96, 64), sides=(16, 40)))
    for name, images in (("train", 2), ("val", 4)):
        write_shards(files, tmp_path / "shards", images, name=name)
    for path in (tmp_path / "shards").glob("*.tar"):
        memory.pipe_file(f"/bucket/cells/{path.name}", path.read_bytes())
    return files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "querybox" / "shards" / ".index"


@pytest.mark.parametrize(
    ("url", "splits"),
    [
        ("memory://bucket/cells", {"train": 8, "val": 8}),
        ("memory://bucket/cells/", {"train": 8, "val": 8}),
        ("memory://bucket/**/*.tar", {"train": 8, "val": 8}),
        ("memory://bucket/cells/train-{000..001}.tar", {"train": 4}),
        ("memory://bucket/cells/val-*.tar", {"val": 8}),
        ("memory://bucket/cells/val-001.tar", {"val": 4}),
    ],
)
def test_a_url_of_shards_is_a_dataset(
    url: str, splits: dict[str, int], bucket: DetectionData, cache: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(url)}: is on the network"):
        validate(url)
    report = validate(url, allow_network=True)
    assert (report.source, report.usable) == (url, True)
    assert {name: split.images for name, split in report.splits.items()} == splits
    data = read_dataset(url, next(iter(splits)), allow_network=True)
    assert data.source == url
    assert [category.name for category in data.categories] == ["blue", "red"]
    assert len([*cache.glob("*.json")]) == len({image.shard for image in data.images}) + 2 * (len(splits) > 1)


def test_splits_may_be_folders(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """Of what the pattern stands for: the bucket is called as it may."""
    for name in ("train", "val"):
        content = write_tar(tmp_path / "a.tar", ANNOTATED).read_bytes()
        memory.pipe_file(f"/test-bucket/{name}/000.tar", content)
    assert find_splits("memory://test-bucket/*/*.tar", allow_network=True).keys() == {"train", "val"}


def test_a_url_is_no_path(bucket: DetectionData) -> None:
    for read in (read_dataset, validate):
        with pytest.raises(
            ConfigError, match=r"got s3:/b/x\.tar, a URL without one of its slashes, which pathlib"
        ):
            read(Path("s3://b/x.tar"))
    with pytest.raises(DataError, match="memory://bucket/none: no such file or folder"):
        read_dataset("memory://bucket/none", allow_network=True)


@pytest.mark.parametrize(
    "command", ["validate", "info", "split", "evaluate", "queries", "inspect", "trace", "export"]
)
def test_commands_take_urls(
    command: str,
    bucket: DetectionData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With all their slashes, and if that is allowed."""
    monkeypatch.chdir(tmp_path)
    url = "memory://bucket/cells/val-*.tar"
    weights, image = str(tmp_path / "tiny.safetensors"), str(bucket.images[0].path)
    detector = Detector.from_recipe("detr_r18", categories=bucket.categories, **SMALLEST)
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    detector.save(weights)
    words = {
        "evaluate": [weights, url],
        "queries": [weights, url, "-o", "queries.png"],
        "inspect": [image, "--model", weights, "--annotations", url],
        "trace": [image, "--model", weights, "--annotations", url],
        "export": [weights, "a.xml", "--to", "openvino", "--precision", "int8", "--calibrate", url],
    }.get(command, [url])
    assert main([command, *words]) == 2
    message = f"ConfigError: {url}: is on the network, and querybox connects to nothing without permission"
    assert message in capsys.readouterr().err
    if command == "export":  # which takes long
        return
    assert main([command, *words, "--allow-network"]) == 0
    if command == "split":
        assert len(read_dataset(tmp_path / "val-split", "train").images) == 6


def test_runs_take_urls(bucket: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = "memory://bucket/cells"
    given = read_settings(url, {"allow_network": True}, where="train")
    settings = locate(given.settings, resume=False)
    assert (settings.data.train, settings.folder) == (url, tmp_path / "runs" / "cells")
    splits = read_splits(settings, resume=True)
    assert splits.validation is not None
    assert len(splits.training.images) == len(splits.validation.images) == 8
    for name in ("train", "val"):
        given = read_settings(
            None, {"data.train": url, f"data.{name}": "https://me:secret@host/a.tar"}, where="train"
        )
        with pytest.raises(
            ConfigError, match=rf"setting 'data\.{name}' got https://host/a\.tar with credentials"
        ):
            locate(given.settings, resume=False)
    given = read_settings(None, {"data.train": "s3:/bucket/a.tar"}, where="train")
    with pytest.raises(
        ConfigError, match=r"setting 'data\.train' got s3:/bucket/a\.tar, a URL without one of"
    ):
        locate(given.settings, resume=False)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/cells/train-{000..099}.tar", "train"),
        ("s3://bucket/cells/*.tar", "cells"),
        ("s3://bucket/cells/", "cells"),
        ("https://host/data/photos.v2?token=a", "photos"),
        ("s3://1/2", "shards"),
    ],
)
def test_the_name_of_a_url(url: str, name: str) -> None:
    assert storage.stem(url) == name


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
    (index,) = (tmp_path / ".index").glob("*.json")
    assert not any(token in index.read_text() for token in ("first", "second"))
