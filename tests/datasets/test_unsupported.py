from __future__ import annotations

from pathlib import Path

import pytest

from querybox.data import read_dataset
from querybox.errors import DataError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "train.tfrecord",
            r"contains TFRecords \(train\.tfrecord\), .*: export the dataset as COCO JSON; expected",
        ),
        ("a/train.tfrecord-00000-of-00010", "contains TFRecords"),
        ("pets_train.record", "contains TFRecords"),
        ("digitStruct.MAT", r"contains MATLAB files \(digitStruct\.MAT\), which are not read: convert them"),
        ("dataset.zip", r"contains archives \(dataset\.zip\), which are not read: unpack them"),
        ("data.parquet", "contains tables of Hugging Face .*metadata.jsonl"),
        ("annotations.pkl", "contains pickled objects, which may execute code"),
        ("export.ndjson", "contains JSON lines"),
        ("tiles.geojson", "contains geographical data"),
        ("photos/a.jpg", "contains images, but no annotations that are recognised; expected COCO"),
        ("notes.md", "contains no dataset; expected COCO"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_a_file_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "train.tfrecord").touch()
    with pytest.raises(DataError, match=r"train\.tfrecord: contains TFRecords"):
        read_dataset(tmp_path / "train.tfrecord")
