"""Parquet files of the Hugging Face Hub; the writer makes them as the library `datasets` does."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_writers import Drawn, write_coco, write_images
from PIL import Image

from querybox.data import parquet_file, read_dataset, read_pixels
from querybox.data.formats import parquet
from querybox.data.formats.parquet_images import image_folder
from querybox.data.read import read_split
from querybox.errors import DataError, MissingExtraError
from querybox.training.data import digest

NAMES = ["owl", "cat", "dog"]
IMAGES = [
    Drawn(name="a.jpg", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.png", size=(30, 40)),
    Drawn(name="c.jpg", size=(20, 20), objects=[("cat", (3, 4, 10, 12))]),
]


def content(image: Drawn) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", image.size, (40, 90, 200)).save(stream, "PNG" if image.name.endswith("png") else "JPEG")
    return stream.getvalue()


def row(image: Drawn, /, **changes: Any) -> dict[str, Any]:
    """Return a row with objects as a structure of lists."""
    return {
        "image": {"bytes": content(image), "path": image.name},
        "objects": {
            "bbox": [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in image.objects],
            "category": [NAMES.index(name) for name, _ in image.objects],
        },
    } | changes


def features(names: Sequence[str] = NAMES) -> dict[str, Any]:
    category = {"feature": {"names": list(names), "_type": "ClassLabel"}, "_type": "List"}
    return {"image": {"_type": "Image"}, "objects": {"bbox": {"_type": "List"}, "category": category}}


def write(
    file: Path, rows: Sequence[dict[str, Any]], kinds: dict[str, Any] | None = None, rows_a_group: int = 2
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    if kinds is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    pq.write_table(table, file, row_group_size=rows_a_group)
    return file


def test_shards_of_splits(tmp_path: Path) -> None:
    for number, image in enumerate(IMAGES[:2]):
        write(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", [row(image)], features())
    write(
        tmp_path / "data" / "validation-00000-of-00001-0123456789abcdef.parquet", [row(IMAGES[2])], features()
    )
    train, val = (read_dataset(tmp_path, split) for split in ("train", "val"))
    assert [(category.id, category.name) for category in train.categories] == [
        (0, "owl"),
        (1, "cat"),
        (2, "dog"),
    ]
    assert val.categories == train.categories
    assert [(image.id, image.path.name, image.width, image.height) for image in train.images] == [
        (1, "a.jpg", 40, 30),
        (2, "b.png", 30, 40),
    ]
    assert train.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    assert train.images[0].labels.tolist() == [2, 1]
    assert len(train.images[1].labels) == 0
    assert val.images[0].boxes_xyxy.tolist() == [[3, 4, 10, 12]]
    assert {finding.kind: finding.count for finding in train.findings} == {"embedded_image": 2}
    for record, image in zip(train.images, IMAGES[:2], strict=True):
        assert record.path.read_bytes() == content(image)
        assert record.path.is_relative_to(tmp_path / "data" / ".images")


def test_images_are_unpacked_once_and_an_interrupted_unpacking_is_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "train.parquet", [row(image) for image in IMAGES], features())
    caplog.set_level("INFO", logger="querybox")
    paths = [image.path for image in read_dataset(tmp_path).images]
    assert f"{file}: writing its 3 images to {paths[0].parent}, once" in caplog.messages
    paths[2].unlink()
    inodes = [path.stat().st_ino for path in paths[:2]]
    assert [image.path for image in read_dataset(file).images] == paths
    assert paths[2].read_bytes() == content(IMAGES[2])
    caplog.clear()
    read_dataset(file)
    assert not caplog.messages
    assert [path.stat().st_ino for path in paths[:2]] == inodes
    write(file, [row(image) for image in IMAGES[1:]], features())
    assert [image.path.name for image in read_dataset(file).images] == ["b.png", "c.jpg"]
    assert read_dataset(file).images[0].path.parent != paths[0].parent


def test_classes_of_the_same_name_are_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [row(IMAGES[0])], features(["owl", "cat", "cat"]))
    (tmp_path / "urls.yaml").write_text("train: train.parquet\n")  # which is read where it is
    for path in (file, tmp_path / "urls.yaml"):
        with pytest.raises(DataError, match="'cat' is the name of 2 classes: 1, 2"):
            read_dataset(path)


def test_each_file_has_its_own_names_of_classes(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"train-{number}.parquet", [row(IMAGES[0])], features(names))
        for number, names in enumerate([NAMES, [NAMES[0], *NAMES[:0:-1]]])
    ]
    files.append(write(tmp_path / "train-2.parquet", [row(IMAGES[0])]))  # without names
    (tmp_path / "urls.yaml").write_text("train: train-*.parquet\n")
    for path in (tmp_path, tmp_path / "urls.yaml"):
        data = read_dataset(path)
        assert [category.name for category in data.categories] == NAMES
        first, second, third = (image.labels.tolist() for image in data.images)
        assert first == third != second == first[::-1]


def test_the_class_of_an_image_is_not_that_of_its_objects(tmp_path: Path) -> None:
    kinds = features() | {"label": {"names": ["in", "out", "sea"], "_type": "ClassLabel"}}
    kinds["objects"]["category"] = {"feature": {"dtype": "int64"}, "_type": "List"}
    write(tmp_path / "train.parquet", [row(IMAGES[0])], kinds)
    assert {category.name for category in read_dataset(tmp_path).categories} <= {"0", "1", "2"}


def test_a_moved_dataset_has_the_same_digest(tmp_path: Path) -> None:
    rows = [row(image, image={"bytes": content(image), "path": None}) for image in IMAGES]
    write(tmp_path / "old" / "train.parquet", rows, features())
    before = read_dataset(tmp_path / "old")
    assert [image.path.name for image in before.images] == ["000000.jpg", "000001.png", "000002.jpg"]
    (tmp_path / "new").mkdir()
    shutil.copyfile(tmp_path / "old" / "train.parquet", tmp_path / "new" / "train.parquet")
    assert digest(read_dataset(tmp_path / "new")) == digest(before)


@pytest.mark.parametrize("key", ["category", "categories", "label", "labels"])
@pytest.mark.parametrize("layout", ["lists", "structures", "columns"])
def test_layouts_of_objects(tmp_path: Path, layout: str, key: str) -> None:
    image = IMAGES[0]
    boxes, names = row(image)["objects"]["bbox"], [name for name, _ in image.objects]
    objects: Any = {"bbox": boxes, key: names}
    if layout == "structures":
        objects = [{"bbox": box, key: name} for box, name in zip(boxes, names, strict=True)]
    rows = [row(image) | {"width": 40, "height": 30, "objects": objects}]
    if layout == "columns":
        rows = [{"image": rows[0]["image"], "bbox": boxes, key: names}]
    write(tmp_path / "0000.parquet", rows)
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    assert data.images[0].labels.tolist() == [1, 0]
    assert data.images[0].size_stated == (layout != "columns")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_paths_of_image_files(tmp_path: Path, kind: pa.DataType) -> None:
    write_images(tmp_path / "images", IMAGES)
    rows = [row(IMAGES[0], image="images/a.jpg"), row(IMAGES[1], image="/data/old/images/b.png")]
    file = write(tmp_path / "train.parquet", rows)
    table = pq.read_table(file).drop_columns("image")
    paths = pa.array([each["image"] for each in rows], kind)
    pq.write_table(table.append_column("image", paths), file)
    data = read_dataset(tmp_path)
    assert [image.path for image in data.images] == [
        tmp_path / "images" / "a.jpg",
        tmp_path / "images" / "b.png",
    ]
    assert [(category.id, category.name) for category in data.categories] == [(1, "1"), (2, "2")]
    assert {finding.kind: finding.count for finding in data.findings} == {"unlabeled_image": 1}
    assert not (tmp_path / ".images").exists()


def test_names_that_are_too_long_for_files_are_cut(tmp_path: Path) -> None:
    rows = [
        row(IMAGES[0], image={"bytes": content(IMAGES[0]), "path": f"{'鳄' * 99}{n}.jpg"}) for n in (1, 2)
    ]
    write(tmp_path / f"{'t' * 247}.parquet", rows, features())
    first, second = (image.path for image in read_dataset(tmp_path).images)
    assert first.name.startswith("鳄" * 70)
    assert first != second


def test_names_of_a_stranger_stay_in_the_folder(tmp_path: Path) -> None:
    names = ["../../out.jpg", "C:\\data\\con:x.jpg", "x/\0y.jpg", ".jpg"]
    rows = [row(IMAGES[0], image={"bytes": content(IMAGES[0]), "path": name}) for name in names]
    write(tmp_path / "data" / "train.parquet", rows, features())
    data = read_dataset(tmp_path)
    assert [image.path.name for image in data.images] == ["out.jpg", "con_x.jpg", "_y.jpg", "jpg.jpg"]
    assert len({image.path.parent for image in data.images}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_repeated_names_get_the_number_of_their_row(tmp_path: Path) -> None:
    rows = [row(image, image={"bytes": content(image), "path": "IMG.jpg"}) for image in IMAGES[:2]]
    rows[1]["image"]["path"] = "x/img.png"
    write(tmp_path / "train.parquet", rows, features())
    assert [image.path.name for image in read_dataset(tmp_path).images] == [
        "000000_IMG.jpg",
        "000001_img.png",
    ]


def test_faults_are_findings_with_their_row(tmp_path: Path) -> None:
    rows = [row(image) for image in IMAGES]
    rows[0]["objects"]["category"] = [0]
    rows[1]["image"]["bytes"] = None
    rows[2]["image"]["bytes"] = b"no image"
    file = write(tmp_path / "train.parquet", rows, features())
    data = read_split(tmp_path, None)
    found = {finding.kind: finding.places[0].what for finding in data.findings}
    assert found["malformed"].startswith(f"{file}, row 0: lists in 'objects' differ in length")
    assert "c.bin: cannot be read as an image" in found["broken_image"]
    assert found["missing_image"].endswith("b.png: no such image file")
    assert not data.images


def test_other_and_damaged_tables(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [{"text": "a", "label": 0}])
    with pytest.raises(DataError, match=r"contains tables without a column of boxes .*train\.parquet"):
        read_dataset(tmp_path)
    write(file, [{"text": "a", "objects": {"bbox": [[1, 2, 3, 4]]}}])
    with pytest.raises(
        DataError, match=r"has the columns text, objects; expected 'image', with binary 'bytes' or a path"
    ):
        read_dataset(tmp_path)
    write(file, [row(image) for image in IMAGES], features())
    damaged = bytearray(file.read_bytes())
    damaged[4 : len(damaged) // 2] = bytes(len(damaged) // 2 - 4)
    file.write_bytes(damaged)
    with pytest.raises(
        DataError, match=r"train\.parquet: cannot be read as Parquet \(.*\); copy or download it again"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_dates_that_cannot_be(tmp_path: Path, unit: str) -> None:
    file = tmp_path / "train.parquet"
    table = pa.Table.from_pylist([row(IMAGES[0])])
    pq.write_table(table.append_column("width", pa.array([2**62 + 1], pa.timestamp(unit))), file)
    damaged = r"train\.parquet: cannot be read as Parquet \(.*; copy or download it again"
    if unit == "ns" and find_spec("pandas") is not None:  # with which pyarrow reads such a date
        damaged = r"train\.parquet, row 0: width: Input should be a valid number"
    with pytest.raises(DataError, match=damaged):
        read_dataset(tmp_path)


@pytest.mark.parametrize("image", [{"bytes": "text"}, {"bytes": 5}, [{"bytes": b"of several"}]])
def test_images_of_other_types_are_refused(tmp_path: Path, image: object) -> None:
    file = write(tmp_path / "train.parquet", [row(IMAGES[0], image=image)], features())
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == (
        f"{file}: has the columns image, objects; expected 'image', with binary 'bytes' or a path, and 'objects' with "
        "'bbox'"
    )


@pytest.mark.parametrize("whole", [True, False])
def test_images_are_not_written_through_a_link(tmp_path: Path, whole: bool) -> None:
    file = write(tmp_path / "data" / "train.parquet", [row(IMAGES[0])], features())
    outside, folder = tmp_path / "outside", image_folder(file)
    outside.mkdir()
    link = folder.parent if whole else folder
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / "data")
    assert str(caught.value) == (
        f"{link}: is a link; images are only written to a folder of the dataset: remove it"
    )
    assert not list(outside.iterdir())


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parquet, parquet_file):
        monkeypatch.setattr(module, "MAX_CONTENT", 1 << 16)
    file = write(tmp_path / "train.parquet", [row(IMAGES[0])], features())
    assert len(read_dataset(tmp_path).images) == 1
    zeros = row(IMAGES[0], image={"bytes": bytes(1 << 22), "path": "a.jpg"})
    many = row(IMAGES[0], objects={"bbox": [[0.0, 0.0, 1.0, 1.0]] * 10_000, "category": [0] * 10_000})
    for bomb, message in (
        (zeros, "states 4,19.,... bytes of content"),
        (many, "bytes of annotations in 1 row,"),
    ):
        table = pa.Table.from_pylist([bomb])
        pq.write_table(table, file, compression="zstd")
        with pytest.raises(DataError, match=rf"train\.parquet: .*{message}.* as a decompression bomb"):
            read_dataset(tmp_path)
    assert not [path for path in (tmp_path / ".images").glob("*/*") if path.stat().st_size > 1 << 20]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [row(IMAGES[0])], features())
    file.write_bytes(file.read_bytes().replace(b"a.jpg", b"\xff.jpg"))
    with pytest.raises(DataError, match=r"cannot be read as Parquet \('utf-8' codec"):
        read_dataset(tmp_path)


def test_images_in_a_read_only_folder_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train.parquet", [row(image) for image in IMAGES], features())
    monkeypatch.setattr("os.access", lambda path, mode: False)
    data = read_dataset(tmp_path)
    assert not (tmp_path / ".images").exists()
    assert f"{tmp_path}: is read-only, so that the images of train.parquet are not unpacked" in caplog.text
    assert [read_pixels(image).shape for image in data.images] == [(3, 30, 40), (3, 40, 30), (3, 20, 20)]
    monkeypatch.undo()
    unpacked = read_dataset(tmp_path)
    assert (unpacked.categories, digest(unpacked)) == (data.categories, digest(data))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert read_dataset(tmp_path).images[0].path == unpacked.images[0].path


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [row(image) for image in IMAGES], features())
    (tmp_path / ".images").write_text("")
    with pytest.raises(
        DataError, match=r"cannot be written to it .*; copy the dataset to a folder that can be"
    ):
        read_dataset(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.parquet", [row(IMAGES[0])], features())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs pyarrow, .*: pip install 'querybox\[parquet\]'"):
        read_dataset(tmp_path)


def test_beside_another_format_the_file_decides(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", IMAGES, NAMES)
    file = write(tmp_path / "train.parquet", [row(IMAGES[0])], features())
    with pytest.raises(DataError, match="could be COCO or Parquet; pass the path"):
        read_dataset(tmp_path)
    assert len(read_dataset(file).images) == 1
