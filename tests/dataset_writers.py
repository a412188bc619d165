"""Writes one small dataset in each format that querybox reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from querybox.data import ImageRecord

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One image to write: its name, its (width, height), and a class name and xyxy pixels for every object."""

    name: str
    size: tuple[int, int]
    objects: Sequence[tuple[str, Box]] = ()


def write_images(folder: Path, images: Sequence[Drawn]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.new("RGB", image.size, (40 * number % 256, 90, 200)).save(folder / image.name)


def coco(images: Sequence[Drawn], names: Sequence[str]) -> dict[str, Any]:
    """Return a COCO document; ids count from 1 in order."""
    annotations = [
        {
            "image_id": number,
            "category_id": names.index(name) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
        }
        for number, image in enumerate(images, start=1)
        for name, (x0, y0, x1, y1) in image.objects
    ]
    return {
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "images": [
            {"id": number, "file_name": image.name, "width": image.size[0], "height": image.size[1]}
            for number, image in enumerate(images, start=1)
        ],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
    }


def write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_coco(root: Path, split: str, images: Sequence[Drawn], names: Sequence[str]) -> Path:
    write_images(root / "images", images)
    return write_json(root / "annotations" / f"{split}.json", coco(images, names))


def write_voc(root: Path, split: str, images: Sequence[Drawn]) -> Path:
    write_images(root / "JPEGImages", images)
    lists = root / "ImageSets" / "Main"
    (root / "Annotations").mkdir(exist_ok=True)
    lists.mkdir(parents=True, exist_ok=True)
    for image in images:
        (root / "Annotations" / image.name).with_suffix(".xml").write_text(voc_xml(image), encoding="utf-8")
    stems = [Path(image.name).stem for image in images]
    (lists / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    return root


def voc_xml(image: Drawn) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0!r}</xmin><ymin>{y0!r}</ymin><xmax>{x1!r}</xmax>"
        f"<ymax>{y1!r}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in image.objects
    )
    width, height = image.size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def write_yolo(root: Path, split: str, images: Sequence[Drawn], names: Sequence[str]) -> Path:
    write_images(root / "images" / split, images)
    labels = root / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    for image in images:
        (labels / image.name).with_suffix(".txt").write_text(yolo_text(image, names), encoding="utf-8")
    lines = [
        f"path: {root.as_posix()}",
        f"{split}: images/{split}",
        "names:",
        *(f"- {name}" for name in names),
    ]
    (root / "data.yaml").write_text("\n".join(lines), encoding="utf-8")
    return root / "data.yaml"


def yolo_text(image: Drawn, names: Sequence[str]) -> str:
    width, height = image.size
    return "".join(
        f"{names.index(name)} {(x0 + x1) / 2 / width!r} {(y0 + y1) / 2 / height!r} "
        f"{(x1 - x0) / width!r} {(y1 - y0) / height!r}\n"
        for name, (x0, y0, x1, y1) in image.objects
    )


def write_boxes(
    folder: Path, size: tuple[int, int], sides: tuple[int, int], kept: dict[int, int] | None = None
) -> Path:
    """Write eight noisy images, each with a red and a blue box, as a COCO dataset.

    Args:
        folder: Where; it is made.
        size: (width, height) of the images in pixels.
        sides: The shortest side of a box, and one more than the longest.
        kept: How many boxes an image has, by its number from 1 to 8, where that is fewer than two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    rng = np.random.default_rng(7)
    annotations: list[dict[str, Any]] = []
    for number in range(1, 9):
        pixels = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
        colors = ((1, (220, 30, 30)), (2, (30, 30, 220)))
        for label, color in colors[: (kept or {}).get(number, 2)]:
            w, h = rng.integers(*sides, 2).tolist()
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = color
            box = {"image_id": number, "category_id": label, "bbox": [x, y, w, h]}
            annotations.append({"id": len(annotations) + 1, **box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number in range(1, 9)
    ]
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write_json(folder / "boxes.json", content)


def changed(record: ImageRecord, **values: Any) -> ImageRecord:
    """Return a record with other `values` for some of its properties."""
    names = ("id", "path", "width", "height", "boxes_xyxy", "labels", "crowd", "areas", "size_stated")
    return ImageRecord(**{name: getattr(record, name) for name in names} | values)
