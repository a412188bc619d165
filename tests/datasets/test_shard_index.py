"""The index of shards: written once, by one of several processes, and made again if a shard changes."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from dataset_writers import write_boxes
from shards import ANNOTATED, jpeg, same_records, write_shards, write_tar

from querybox.data import DetectionData, read_dataset, shard_index
from querybox.data.formats import shard_reader, tar_index
from querybox.errors import DataError, ImageError


@pytest.fixture
def files(tmp_path: Path) -> DetectionData:
    """Eight images of 96 x 64 pixels."""
    return read_dataset(write_boxes(tmp_path / "files", (96, 64), sides=(16, 40), kept={4: 1, 8: 0}))


def test_an_index_is_written_once(tmp_path: Path, files: DetectionData) -> None:
    folder = write_shards(files, tmp_path / "shards", 4)
    first = read_dataset(folder)
    indices = sorted((folder / ".index").glob("*.json"))
    assert len(indices) == 2
    with mock.patch.object(shard_reader, "make_index", side_effect=AssertionError):
        same_records(read_dataset(folder), first)
    indices[0].write_text("{}")
    write_tar(folder / "train-001.tar", {"9.jpg": jpeg(), "9.json": b"[]"})
    data = read_dataset(folder)
    assert [image.path.name for image in data.images] == ["1.png", "2.png", "3.png", "4.png", "9.jpg"]
    assert json.loads(indices[0].read_text())["samples"]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of tars that were made on systems with other encodings."""
    path = write_tar(tmp_path / "a.tar", {"\udce4.jpg": jpeg(), "\udce4.json": b"[]", **ANNOTATED})
    first = read_dataset(path)
    with mock.patch.object(shard_reader, "make_index", side_effect=AssertionError):
        same_records(read_dataset(path), first)
    assert "\udce4.jpg" in [image.path.name for image in first.images]
    assert caplog.text == ""


def test_an_index_that_cannot_be_written_is_made_each_time(
    tmp_path: Path, files: DetectionData, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shards(files, tmp_path / "shards", 8)
    with mock.patch.object(shard_index, "write_text", side_effect=PermissionError("read-only")):
        same_records(read_dataset(folder), files)
    assert "the index cannot be written (read-only); it will be made again the next time" in caplog.text
    assert not list((folder / ".index").glob("*.json"))


def test_an_index_is_written_to_no_other_folder(tmp_path: Path, files: DetectionData) -> None:
    folder = write_shards(files, tmp_path / "shards", 8)
    (tmp_path / "elsewhere").mkdir()
    (folder / ".index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"\.index: is a link; an index is only written to the folder of the dataset"
    ):
        read_dataset(folder)


def test_a_place_in_an_index_is_checked(tmp_path: Path, files: DetectionData) -> None:
    """An index may have come with the shards."""
    folder = write_shards(files, tmp_path / "shards", 8)
    read_dataset(folder)
    (file,) = (folder / ".index").glob("*.json")
    content = json.loads(file.read_text())
    for place in ({"start": -1}, {"size": 1 << 40}, {"size": -1}, {"shape": [0, 5]}, {"start": "x"}):
        file.write_text(json.dumps({**content, "samples": [content["samples"][0] | place]}))
        assert len(read_dataset(folder).images) == 8
    file.write_text(json.dumps({**content, "samples": [content["samples"][0] | {"start": 1 << 40}]}))
    (record,) = read_dataset(folder).images
    with pytest.raises(ImageError, match=r"got 0 of .* bytes from byte 1,099,511,627,776 on"):
        record.file.read()  # type: ignore[union-attr]


def test_of_several_processes_one_makes_an_index(tmp_path: Path) -> None:
    """The others wait for it."""
    path = write_tar(tmp_path / "train.tar", ANNOTATED)
    made = []

    def make(place: str, stated: str) -> shard_index.ShardIndex:
        time.sleep(0.1)
        made.append(place)
        return tar_index.tar_index(place, stated)

    with ThreadPoolExecutor(4) as pool:
        indices = list(
            pool.map(lambda _: shard_index.read_index(str(path), tmp_path / ".index", make), range(4))
        )
    assert made == [str(path)]
    assert all(index == indices[0] for index in indices)


@pytest.mark.parametrize("error", [PermissionError("read-only"), NotImplementedError("no flock")])
def test_without_locks_each_process_makes_an_index(tmp_path: Path, error: Exception) -> None:
    path = write_tar(tmp_path / "train.tar", ANNOTATED)
    with mock.patch("filelock.FileLock.acquire", side_effect=error):
        assert len(read_dataset(path).images) == 1
    assert len([*(tmp_path / ".index").glob("*.json")]) == 1
