"""Writes one small dataset in each format of annotation tools."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from dataset_writers import Box, Drawn, write_images, write_json

from querybox.data import DetectionData

TWO_IMAGES = [
    Drawn(name="a.jpg", size=(80, 60), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 80, 60))]),
    Drawn(name="b.jpg", size=(30, 40)),
]
OPEN_IMAGES_COLUMNS = (
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf"),
)


def assert_two_images(data: DetectionData) -> None:
    """Check that a dataset has the content of `TWO_IMAGES`."""
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert [(image.path.name, image.width, image.height) for image in data.images] == [
        ("a.jpg", 80, 60),
        ("b.jpg", 30, 40),
    ]
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 80, 60]]
    assert data.images[0].labels.tolist() == [1, 0]
    assert not data.findings


def write_tensorflow_csv(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    """Write `<split>/_annotations.csv` beside the images, as Roboflow does."""
    write_images(root / split, images)
    rows = [
        [image.name, *image.size, name, *map(repr, box)] for image in images for name, box in image.objects
    ]
    columns = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    return write_csv(root / split / "_annotations.csv", [columns, *rows])


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def write_labelme(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / split, images)
    for image in images:
        shapes = [labelme_shape(name, box) for name, box in image.objects]
        write_json((root / split / image.name).with_suffix(".json"), labelme(image, shapes))
    return root


def labelme_shape(name: str, box: Box) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "label": name,
        "points": [[x1, y0], [x0, y1]],
        "group_id": None,
        "shape_type": "rectangle",
        "flags": {},
    }


def labelme(image: Drawn, shapes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image.name,
        "imageData": None,
        "imageHeight": image.size[1],
        "imageWidth": image.size[0],
    }


def write_cvat(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / split / "images", images)
    texts = [
        cvat_image(image, [cvat_box(name, box) for name, box in image.objects], number)
        for number, image in enumerate(images)
    ]
    path = root / split / "annotations.xml"
    path.write_text(cvat("".join(texts)), encoding="utf-8")
    return root


def cvat(content: str, meta: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta>{meta}</meta>{content}'
        "</annotations>"
    )


def cvat_image(image: Drawn, shapes: Sequence[str], number: int = 0, more: str = "") -> str:
    width, height = image.size
    head = f'<image id="{number}" name={quoteattr(image.name)} width="{width}" height="{height}" {more}>'
    return f"{head}{''.join(shapes)}</image>"


def cvat_box(name: str, box: Box, more: str = "") -> str:
    x0, y0, x1, y1 = box
    return (
        f'<box label={quoteattr(name)} source="manual" occluded="0" xtl="{x0!r}" ytl="{y0!r}" xbr="{x1!r}" '
        f'ybr="{y1!r}" z_order="0" {more}></box>'
    )


def write_label_studio(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / "images", images)
    tasks = [
        label_studio_task(image, [label_studio_box(image, name, box) for name, box in image.objects], number)
        for number, image in enumerate(images, start=1)
    ]
    return write_json(root / f"{split}.json", tasks)


def label_studio_task(image: Drawn, regions: Sequence[dict[str, Any]], number: int = 1) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": [{"id": number, "was_cancelled": False, "result": regions}],
        "predictions": [],
        "data": {"image": f"/data/upload/1/0a1b2c3d-{image.name}"},
    }


def label_studio_box(image: Drawn, name: str, box: Box, **value: float) -> dict[str, Any]:
    width, height = image.size
    x0, y0, x1, y1 = box
    return {
        "id": "x",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": x0 / width * 100,
            "y": y0 / height * 100,
            "width": (x1 - x0) / width * 100,
            "height": (y1 - y0) / height * 100,
            "rotation": 0,
            "rectanglelabels": [name],
            **value,
        },
    }


def write_createml(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / split, images)
    content = [
        {
            "image": image.name,
            "annotations": [
                {
                    "label": name,
                    "coordinates": {
                        "x": (x0 + x1) / 2,
                        "y": (y0 + y1) / 2,
                        "width": x1 - x0,
                        "height": y1 - y0,
                    },
                }
                for name, (x0, y0, x1, y1) in image.objects
            ],
        }
        for image in images
    ]
    return write_json(root / split / "_annotations.createml.json", content)


def write_open_images(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / split, images)
    names = sorted({name for image in images for name, _ in image.objects})
    codes = {name: f"/m/0{number}" for number, name in enumerate(reversed(names))}
    write_csv(root / "class-descriptions-boxable.csv", [[code, name] for name, code in codes.items()])
    rows: list[list[object]] = [[*OPEN_IMAGES_COLUMNS]]
    for image in images:
        width, height = image.size
        for name, (x0, y0, x1, y1) in image.objects:
            sides = (x0 / width, x1 / width, y0 / height, y1 / height)
            rows.append([Path(image.name).stem, "xclick", codes[name], 1, *map(repr, sides), 0, 0, 0])
    return write_csv(root / f"{split}-annotations-bbox.csv", rows)


def write_hugging_face(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / split, images)
    lines = [
        json.dumps(
            {
                "file_name": image.name,
                "objects": {
                    "bbox": [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in image.objects],
                    "categories": [name for name, _ in image.objects],
                },
            }
        )
        for image in images
    ]
    (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
