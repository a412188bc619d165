"""Small sound datasets in the formats that have an annotation file in text, JSON or Parquet for several objects."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture() -> bytes:
    """Return a PNG of 8 x 6 pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (90, 40, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_picture(folder: Path) -> None:
    """Write an image of 8 x 6 pixels, 1.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.png").write_bytes(picture())


def write_via(folder: Path) -> dict[str, str]:
    """Write a project with all kinds of shapes."""
    write_picture(folder)
    shapes: list[dict[str, Any]] = [
        {"name": "rect", "x": 1, "y": 2, "width": 4, "height": 3},
        {"name": "circle", "cx": 4, "cy": 3, "r": 2.5},
        {"name": "ellipse", "cx": 4, "cy": 3, "rx": 2, "ry": 1, "theta": 0.7},
        {"name": "polygon", "all_points_x": [1, 5, 3], "all_points_y": [1, 1, 4]},
        {"name": "point", "cx": 1, "cy": 1},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}} for shape in shapes]
    regions[0]["region_attributes"] = {"class": {"dog": True, "cat": False}}
    entry = {"filename": "1.png", "size": 99, "regions": regions, "file_attributes": {}}
    (folder / "via.json").write_text(
        json.dumps({"_via_settings": {}, "_via_img_metadata": {"1.png99": entry}})
    )
    return {"via.json": "json"}


def write_supervisely(folder: Path) -> dict[str, str]:
    """Write a rectangle, a polygon with a hole, and a bitmap."""
    write_picture(folder / "ds" / "img")
    (folder / "ds" / "ann").mkdir()
    points = {"exterior": [[1, 1], [7, 1], [7, 5]], "interior": [[[5, 2], [6, 2], [6, 3]]]}
    bitmap = {"data": base64.b64encode(zlib.compress(picture())).decode(), "origin": [0, 0]}
    objects = [
        {"classTitle": "cat", "geometryType": "rectangle", "points": points | {"interior": []}},
        {"classTitle": "cat", "geometryType": "polygon", "points": points},
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": bitmap},
    ]
    content = {"size": {"height": 6, "width": 8}, "objects": objects}
    (folder / "ds" / "ann" / "1.png.json").write_text(json.dumps(content))
    return {"ds/ann/1.png.json": "json"}


def write_lines(folder: Path, images: str, file: str, *lines: str) -> dict[str, str]:
    """Write an image, and an annotation file with lines."""
    write_picture(folder / images)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("\n".join([*lines, ""]))
    return {file: "lines"}


def write_kitti(folder: Path) -> dict[str, str]:
    """Write an object, one with a score, and a region without annotations."""
    line = "Car 0.00 0 -1.57 0.5 1.0 5.0 4.0 1.5 1.6 3.9 1.0 1.5 8.0 -1.5"
    ignored = line.replace("Car", "DontCare")
    return write_lines(folder, "image_2", "label_2/1.txt", line, ignored, f"{line} 0.9")


def write_visdrone(folder: Path) -> dict[str, str]:
    """Write an object, and one that is ignored."""
    return write_lines(folder, "images", "annotations/1.txt", "1,2,4,3,1,4,0,0", "0,0,2,2,0,0,0,0,")


def write_wider_face(folder: Path) -> dict[str, str]:
    """Write two faces, one of which is invalid."""
    faces = ["1 1 4 3 0 0 0 0 0 0", "2 2 3 3 0 0 0 1 0 0"]
    return write_lines(folder, ".", "faces.txt", "1.png", "2", *faces)


def write_parquet(folder: Path) -> dict[str, str]:
    """Write two rows with an image and its objects."""
    objects = {"bbox": [[0.5, 1.0, 4.0, 3.0], [2.0, 2.0, 6.0, 4.0]], "category": [0, 1]}
    rows = [{"image": {"bytes": picture(), "path": f"{n}.png"}, "objects": objects} for n in (1, 2)]
    label = {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "List"}
    features = {"info": {"features": {"objects": {"category": label}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, folder / "train.parquet")
    return {"train.parquet": "bytes"}
