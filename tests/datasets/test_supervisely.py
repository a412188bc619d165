from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import pytest
from dataset_writers import Drawn, write_images, write_json
from PIL import Image

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError

IMAGE = Drawn(name="a.jpg", size=(100, 80))


def annotate(folder: Path, *objects: Any, image: Drawn = IMAGE) -> Path:
    """Write an image and its annotations into the folder of a dataset."""
    write_images(folder / "img", [image])
    width, height = image.size
    content = {
        "description": "",
        "tags": [],
        "size": {"height": height, "width": width},
        "objects": list(objects),
    }
    return write_json(folder / "ann" / f"{image.name}.json", content)


def shape(name: str, kind: str, *points: list[float]) -> dict[str, Any]:
    return {"classTitle": name, "geometryType": kind, "points": {"exterior": list(points), "interior": []}}


def bitmap(name: str, data: bytes) -> dict[str, Any]:
    return {
        "classTitle": name,
        "geometryType": "bitmap",
        "bitmap": {"data": base64.b64encode(data).decode(), "origin": [7, 9]},
    }


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height), 1).save(stream, "PNG")
    return stream.getvalue()


def test_shapes_of_a_project(tmp_path: Path) -> None:
    write_json(tmp_path / "meta.json", {"classes": [{"title": "cat", "shape": "rectangle"}], "tags": []})
    annotate(
        tmp_path / "ds0",
        shape("cat", "rectangle", [50, 20], [10, 60]),
        shape("dog", "polygon", [5, 6], [25, 8], [15, 30]),
        bitmap("dog", zlib.compress(png(30, 20))),
        shape("cat", "point", [3, 4]),
    )
    annotate(tmp_path / "ds1", image=Drawn(name="a.jpg", size=(30, 40)))
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert [image.path for image in data.images] == [
        tmp_path / name / "img" / "a.jpg" for name in ("ds0", "ds1")
    ]
    assert data.images[0].boxes_xyxy.tolist() == [[10, 20, 50, 60], [5, 6, 25, 30], [7, 9, 37, 29]]
    assert data.images[0].labels.tolist() == [0, 1, 1]
    assert len(data.images[1].labels) == 0
    assert {finding.kind: finding.count for finding in data.findings} == {
        "boxed_shape": 2,
        "unsupported_shape": 1,
        "no_mask": 1,
    }


def test_datasets_named_after_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        annotate(tmp_path / split, shape("cat", "rectangle", [10, 20], [50, 60]))
    assert read_dataset(tmp_path, "val").images[0].path == tmp_path / "val" / "img" / "a.jpg"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"geometryType": "rectangle"}, "object 1: classTitle: Field required"),
        (shape("cat", "rectangle"), "object 1: points.exterior: List should have at least 1 item"),
        (bitmap("cat", b"no zlib"), "object 1: Error -3"),
        (bitmap("cat", zlib.compress(b"no PNG")), "object 1: unpack requires"),
    ],
)
def test_faults_are_findings_with_their_place(tmp_path: Path, item: dict[str, Any], message: str) -> None:
    file = annotate(tmp_path / "ds0", item)
    annotate(tmp_path / "ds1")
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed"]
    assert finding.places[0].what.startswith(f"{file}, {message}")


def test_a_bitmap_that_is_damaged_after_its_head_is_a_box_alone(tmp_path: Path) -> None:
    data = bytearray(zlib.compress(png(30, 20)))
    data[-1] ^= 1  # of the checksum
    file = annotate(tmp_path / "ds0", bitmap("cat", bytes(data)))
    (image,) = read_dataset(tmp_path).images
    assert image.boxes_xyxy.tolist() == [[7, 9, 37, 29]]
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed_mask"]
    assert finding.places[0].what == (
        f"{file}, object 1: a bitmap: Error -3 while decompressing data: incorrect data check; expected a PNG, "
        "compressed by zlib"
    )


def test_the_folder_of_annotations_by_itself(tmp_path: Path) -> None:
    annotate(tmp_path / "ds0", shape("cat", "rectangle", [10, 20], [50, 60]))
    with pytest.raises(DataError, match=r"the first is 'a\.jpg'; searched .*ann;"):
        read_dataset(tmp_path / "ds0" / "ann")


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    annotate(tmp_path / "ds0")
    (tmp_path / "ds0" / "ann" / "b.jpg.json").write_text("{")
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed"]
    assert "b.jpg.json: Invalid JSON" in finding.places[0].what
