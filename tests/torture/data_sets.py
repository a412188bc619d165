"""Datasets that the faults of data are made in, and a tiny training on them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dataset_writers import write_json
from PIL import Image
from tiny_models import TRAINABLE

from querybox import Detector, RunSettings
from querybox.errors import DataError
from querybox.structures import Category, Preprocessing
from torture.case import require

Document = dict[str, Any]

NAMES = ("red", "blue")
MODEL = {**TRAINABLE, "width": 16, "heads": 2, "feedforward": 32, "queries": 6}


def write_coco(folder: Path, count: int, size: tuple[int, int] = (48, 32)) -> Path:
    """Write a COCO dataset of JPEGs, each with one box, and return its file."""
    (folder / "images").mkdir(parents=True)
    width, height = size
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(20)]
    for number in range(1, count + 1):
        (folder / "images" / f"{number}.jpg").write_bytes(pictures[number % len(pictures)])
    return write_json(
        folder / "data.json",
        {
            "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
            "images": [
                {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
                for number in range(1, count + 1)
            ],
            "annotations": [
                {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [8, 6, 20, 16]}
                | {"area": 320.0, "iscrowd": 0}
                for number in range(1, count + 1)
            ],
        },
    )


def jpeg(pixels: np.ndarray) -> bytes:
    """Return pixels as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG")
    return file.getvalue()


def change(path: Path, spoil: Callable[[Document], object]) -> Path:
    """Change the content of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    spoil(content)
    return write_json(path, content)


def corrupt(file: Path, way: int) -> None:
    """Truncate a file, empty it, or put a web page in its place."""
    content = file.read_bytes()
    file.write_bytes((content[: len(content) // 2], b"", b"<html><body>404 Not Found</body></html>")[way % 3])


def bytes_of(folder: Path) -> str:
    """Return what changes with any byte or name of a file in the folder."""
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def refusal(call: Callable[[], object]) -> str:
    """Return the message with which the data are refused."""
    try:
        call()
    except DataError as error:
        message = str(error)
        require("\n" not in message, f"more than one line: {message!r}")
        return message
    require(False, "nothing was refused")
    raise AssertionError


def settings(path: Path, folder: Path, **values: Any) -> RunSettings:
    """Return the settings of a training of seconds."""
    return RunSettings.parse(
        {
            "recipe": "detr_r50",
            "model": MODEL,
            "data": {
                "train": str(path),
                "val": "none",
                "image_size": 32,
                "workers": 0,
                **values.pop("data", {}),
            },
            "train": {"epochs": 1, "batch_size": 4, **values},
            "output": str(folder / "run"),
        }
    )


def tiny_detector(names: tuple[str, ...] = NAMES) -> Detector:
    """Return an untrained detector of classes with these names."""
    categories = [Category(id=number, name=name) for number, name in enumerate(names, start=1)]
    detector = Detector.from_recipe("detr_r50", categories=categories, **MODEL)
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    return detector
