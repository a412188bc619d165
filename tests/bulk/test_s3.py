"""S3, as moto speaks it on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_writers import write_boxes, write_json
from shards import (
    ANNOTATED,
    jpeg,
    same_records,
    write_images_and_boxes,
    write_parquet,
    write_shards,
    write_tar,
)

from querybox.bulk.find import find
from querybox.bulk.parts import SHARDS, divide
from querybox.bulk.pictures import decode
from querybox.bulk.run import prepare
from querybox.data import DataSettings, read_dataset, storage, train_loader
from querybox.errors import ConfigError, DataError, ImageError, StorageError

pytest.importorskip("moto", reason="needs a server of S3: pip install 'querybox[s3-tests]'")
s3fs = pytest.importorskip("s3fs")
NAMES = ("2.jpg", "10.jpg", "a b+c%20.jpg", "a#1.jpg", "a?b.jpg", "a[1].jpg", "ä.jpg")
"""Names of objects, in which no character has a meaning."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """S3 with the empty bucket ``bucket``; it is found by the variables that all programs for S3 read."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget()
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir("bucket")
    yield filesystem
    filesystem.rm("bucket", recursive=True)
    forget()


def forget() -> None:
    """Let fsspec connect anew, as in a new process."""
    s3fs.S3FileSystem.clear_instance_cache()


def test_files_of_a_bucket_are_found_read_and_written(s3: Any) -> None:
    for name in (*NAMES, "notes.txt", "a.tar", "below/3.jpg", ""):
        s3.pipe_file(
            f"bucket/photos/{name}", name.encode()
        )  # the last one is what consoles make for a folder
    found = find("s3://bucket/photos", SHARDS)
    assert found[:2] == ["s3://bucket/photos/2.jpg", "s3://bucket/photos/10.jpg"]
    assert {*found} == {f"s3://bucket/photos/{name}" for name in (*NAMES, "a.tar")}
    assert find("s3://bucket/photos/", SHARDS) == found
    assert find("s3://bucket/photos/1*.jpg", SHARDS) == [found[1]]
    assert find("s3://bucket/**/*.jpg", SHARDS)[-1] == "s3://bucket/photos/ä.jpg"
    assert "s3://bucket/photos/below/3.jpg" in find("s3://bucket/**/*.jpg", SHARDS)
    for name in NAMES:
        url = f"s3://bucket/photos/{name}"
        assert find(url, SHARDS) == [url]
        assert storage.read(url) == name.encode()
    storage.write("s3://bucket/found/part-0.parquet", b"rows")
    assert s3.cat_file("bucket/found/part-0.parquet") == b"rows"
    assert storage.names("s3://bucket/found") == storage.names("s3://bucket/found/") == {"part-0.parquet"}
    assert storage.names("s3://bucket/new") == set()


def test_what_is_not_there_is_told(s3: Any) -> None:
    s3.pipe_file("bucket/photos/notes.txt", b"")
    for url in ("s3://bucket/none", "s3://bucket/none.jpg", "s3://none", "s3://none/*.jpg"):
        with pytest.raises(
            DataError, match=r"s3://\S+: (no such file or folder; check the URL|found no image)"
        ):
            find(url, SHARDS)
    with pytest.raises(DataError, match=r"found no image among 1 file \(s3://bucket/photos/notes\.txt\)"):
        find("s3://bucket/photos", SHARDS)
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        storage.read("s3://bucket/none.jpg")
    with pytest.raises(
        StorageError, match=r"s3://none/a: cannot be written \(.*bucket.*\); create the bucket"
    ):
        storage.write("s3://none/a", b"")


def test_shards_of_a_bucket_are_read_in_parts(s3: Any, tmp_path: Path) -> None:
    members = {f"{number}.jpg": jpeg((60 + number, 40)) for number in range(3)}
    s3.put(str(write_tar(tmp_path / "a.tar", members)), "bucket/shards/a.tar")
    s3.put(str(write_parquet(tmp_path / "b.parquet", [*members.values()])), "bucket/shards/b.parquet")
    parts = divide(["s3://bucket/shards"])
    images = [decode(picture, None) for part in parts for picture in part.pictures()]
    rows = [f"a.tar#{name}" for name in members] + [f"b.parquet#{row}" for row in range(3)]
    assert [image.name for image in images] == [f"s3://bucket/shards/{row}" for row in rows]
    assert [image.pixels.shape[2] for image in images if image.pixels is not None] == [60, 61, 62] * 2


def test_a_prediction_into_a_bucket_is_continued(s3: Any) -> None:
    for number in range(3):
        s3.pipe_file(f"bucket/photos/{number}.jpg", jpeg())
    before = prepare(["s3://bucket/photos"], "s3://bucket/found", {"threshold": 0.5})
    assert before.left() == list(before.parts)
    storage.write(f"s3://bucket/found/{before.parts[1].file_name}", b"")
    forget()
    again = prepare(["s3://bucket/photos"], "s3://bucket/found", {"threshold": 0.5})
    assert [part.number for part in again.left()] == [0, 2]
    with pytest.raises(
        ConfigError, match=r"s3://bucket/found: has results of .*: threshold was 0\.5 and is 0\.4"
    ):
        prepare(["s3://bucket/photos"], "s3://bucket/found", {"threshold": 0.4})
    with pytest.raises(ConfigError, match=r"s3://bucket/photos: the folder is not empty \(0\.jpg, "):
        prepare(["s3://bucket/photos"], "s3://bucket/photos", {"threshold": 0.5})


def test_missing_credentials_are_told(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are an error of the command and of its parts, which stay undone; not of each image."""
    s3.pipe_file("bucket/1.jpg", jpeg())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    forget()
    for action in (storage.read, storage.names, lambda url: find(url, SHARDS)):
        with pytest.raises(StorageError, match=r"s3://bucket/1\.jpg: Unable to locate credentials"):
            action("s3://bucket/1.jpg")


def test_a_storage_that_refuses_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.pipe_file("bucket/1.jpg", jpeg())
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
        with pytest.raises(StorageError, match=r"s3://bucket/1\.jpg: Access Denied \(PermissionError\)"):
            storage.read("s3://bucket/1.jpg")


async def refuse(*_: Any, **__: Any) -> None:
    """Answer as s3fs does if S3 refuses."""
    raise PermissionError("Access Denied")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_images_of_shards_in_its_workers(
    s3: Any, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connections of this process are of no use in those that are forked from it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = read_dataset(write_boxes(tmp_path / "files", (96, 64), sides=(16, 40)))
    for path in write_shards(files, tmp_path / "shards", 3).glob("*.tar"):
        s3.pipe_file(f"bucket/shards/{path.name}", path.read_bytes())
    file = write_json(tmp_path / "boxes.yaml", {"train": "s3://bucket/shards/", "names": ["red", "blue"]})
    data = read_dataset(file, allow_network=True)
    same_records(data, files)
    settings = DataSettings(image_size=64, workers=workers)
    for number in range(2):
        batches, expected = (
            list(train_loader(each, settings.replace(workers=count), batch_size=2, seed=number))
            for each, count in ((data, workers), (files, 0))
        )
        for batch, other in zip(batches, expected, strict=True):
            assert batch.image_ids == other.image_ids
            assert torch.equal(batch.pixels, other.pixels)
    rows = write_images_and_boxes(files, tmp_path / "rows", 4, rows_a_group=2)
    for path in rows.glob("*.parquet"):
        s3.pipe_file(f"bucket/rows/{path.name}", path.read_bytes())
    data = read_dataset("s3://bucket/rows", allow_network=True)
    same_records(data, files)
    batches = list(train_loader(data, settings, batch_size=2, seed=1))
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.pixels, other.pixels)
    s3.pipe_file("bucket/shards/train-001.tar", write_tar(tmp_path / "a.tar", ANNOTATED).read_bytes())
    assert len(read_dataset(file, allow_network=True).images) == 6  # the index is made anew
