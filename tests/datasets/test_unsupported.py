from __future__ import annotations

import shutil
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
        ("data.parquet", r"contains tables without a column of boxes .*metadata\.jsonl"),
        ("annotations.pkl", "contains pickled objects, which may execute code"),
        ("train/labelTxt/P0001.txt", "contains DOTA labels"),
        ("MOT17-02/gt/gt.txt", "contains tracks of the MOT Challenge"),
        ("train/Apple/Label/0a1b.txt", "contains labels of OIDv4_ToolKit"),
        ("output.manifest", "contains manifests of SageMaker Ground Truth"),
        ("dataset/_annotations.train.jsonl", "contains Roboflow's format for language models"),
        ("pets-export.json", "contains exports of VoTT .*: export the project as Pascal VOC"),
        ("train/_classes.csv", "contains classes or masks without boxes of Roboflow"),
        ("train/_annotations.txt", "contains Roboflow's text format for Keras"),
        ("export.ndjson", "contains JSON lines"),
        ("boxes.xlsx", "contains spreadsheets .*: save them as CSV"),
        ("boxes.tsv", "contains tables with tabs .*: rename them to .csv"),
        ("tiles.geojson", "contains geographical data"),
        ("photos/a.jpg", "contains images, but no recognised annotations; expected COCO"),
        ("notes.md", "contains no dataset; expected COCO"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_folders_of_classes_are_told_from_detection(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"folders such as cat, dog, but no recognised annotations.*annotate the objects"
    ):
        read_dataset(tmp_path)
    shutil.move(tmp_path / "train" / "cat", tmp_path / "val")
    shutil.move(tmp_path / "train" / "dog", tmp_path / "test")
    with pytest.raises(DataError, match="contains images, but no recognised annotations; expected COCO"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "annotations/train.json",
            '{"info": {}, "categories": {"label": {}}, "items": []}',
            "contains Datumaro annotations",
        ),
        ("labels.json", '[{"name": "a.jpg", "labels": [{"box2d": {"x1": 1}}]}]', "contains BDD100K labels"),
        (
            "results.json",
            '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}]',
            "contains detections .*: pass the annotations",
        ),
        (
            "metrics.json",  # of an evaluation
            '{"images": 3, "annotations": 9, "categories": []}',
            "contains no dataset",
        ),
        (
            "boxes.csv",
            "photo;kind;from;to\n",
            r"the columns of boxes\.csv are not those of boxes \(photo, kind, from, to\): if it has boxes, name them",
        ),
        (
            "faces.xml",
            "<dataset>\n<images>\n<image file='a.jpg'/></images></dataset>",
            "contains annotations of dlib's imglab",
        ),
    ],
)
def test_content_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_a_file_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "train.tfrecord").touch()
    with pytest.raises(DataError, match=r"train\.tfrecord: contains TFRecords"):
        read_dataset(tmp_path / "train.tfrecord")
