"""Write detections to files: COCO JSON, CSV, YOLO labels, tracks, images of masks and segments."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
from PIL import Image

from querybox.data.class_names import CLASSES, names_text
from querybox.data.write import coco_category
from querybox.files import atomic, growing, write_text
from querybox.inference.detections import Detections
from querybox.inference.draw import PALETTE
from querybox.inference.file_names import name_of
from querybox.masks import mask_numbers
from querybox.structures import Category
from querybox.text import to_json

AddDetections: TypeAlias = Callable[[Detections], None]
"""Adds the detections of the next image."""

MAX_PALETTE = 255
"""Number of colours of a palette, without that of the background."""
CSV_COLUMNS = ("source", "category_id", "name", "score", "left", "top", "right", "bottom")


@contextmanager
def coco_file(path: Path, categories: Sequence[Category]) -> Iterator[AddDetections]:
    """Write a COCO dataset file on exit: images, categories, and detections as annotations with a score.

    Unlike a COCO results file it also lists the images, and annotation tools can open it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(detections: Detections) -> None:
        images.append(coco_image(detections, len(images) + 1))
        for index, result in enumerate(detections.to_coco(len(images))):
            area = float(result["bbox"][2] * result["bbox"][3])
            if detections.masks is not None:
                area = float(detections.masks[index].area)
            annotations.append({"id": len(annotations) + 1, **result, "area": area, "iscrowd": 0})

    yield add
    content = {
        "images": images,
        "categories": [coco_category(category) for category in categories],
        "annotations": annotations,
    }
    write_text(path, to_json(content))


@contextmanager
def panoptic_file(
    path: Path, names: Mapping[str, str], categories: Sequence[Category]
) -> Iterator[AddDetections]:
    """Write COCO's panoptic format: the PNG of each image as it is added, and the JSON file on exit.

    The PNGs are in the folder with the name of the file without `.json`; see `Detections.panoptic`.

    Args:
        path: The JSON file; its folder exists.
        names: The name of each source; see `file_names`.
        categories: The classes by label.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    path.with_suffix("").mkdir(exist_ok=True)

    def add(detections: Detections) -> None:
        panoptic = detections.panoptic()
        name = f"{name_of(detections.source, names)}.png"
        with atomic(path.with_suffix("") / name) as temporary:
            Image.fromarray(panoptic.colours()).save(temporary, format="PNG")
        images.append(coco_image(detections, len(images) + 1))
        segments = panoptic.segments_info()
        annotations.append({"image_id": len(images), "file_name": name, "segments_info": segments})

    yield add
    content = {
        "images": images,
        "categories": [
            {"id": category.id, "name": category.name, "isthing": int(not category.stuff)}
            for category in categories
        ],
        "annotations": annotations,
    }
    write_text(path, to_json(content))


def coco_image(detections: Detections, image_id: int) -> dict[str, Any]:
    """Return the entry of an image in the list `images` of COCO's files."""
    height, width = detections.size
    file_name = detections.source.replace(os.sep, "/")  # as in all COCO files
    return {"id": image_id, "file_name": file_name, "width": width, "height": height}


@contextmanager
def text_file(path: Path, *, live: bool) -> Iterator[TextIO]:
    """Open a new text file, which appears on exit; that of a live source appears at once and grows line by line."""
    with (
        growing(path) if live else atomic(path) as target,
        target.open(
            "x" if live else "w",
            buffering=1 if live else -1,
            newline="",
            encoding="utf-8",
            errors="backslashreplace",
        ) as file,
    ):
        yield file


@contextmanager
def csv_file(path: Path, *, tracking: bool = False, live: bool = False) -> Iterator[AddDetections]:
    """Write a CSV file with a row per detection; see `text_file`.

    Boxes are in pixels.

    Args:
        path: The file.
        tracking: Add the column ``track_id``, which is empty for detections that are in no track.
        live: Add the column ``time``, in UTC, and write each row at once.
    """
    with text_file(path, live=live) as file:
        table = csv.writer(file)
        columns = [*CSV_COLUMNS]
        if tracking:
            columns.append("track_id")
        if live:
            columns.append("time")
        table.writerow(columns)

        def add(detections: Detections) -> None:
            ids = [detections.categories[label].id for label in detections.labels.tolist()]
            scores, boxes = detections.scores.tolist(), detections.boxes_xyxy.tolist()
            rows = zip(ids, detections.names, scores, boxes, detections.tracks(), strict=True)
            for category_id, name, score, box, track in rows:
                row = [detections.source, category_id, name, score, *box]
                if tracking:
                    row.append(track or "")
                if detections.time is not None:
                    row.append(datetime.fromtimestamp(detections.time, UTC).isoformat())
                table.writerow(row)

        yield add


@contextmanager
def mot_files(folder: Path, names: Mapping[str, str], *, live: bool = False) -> Iterator[AddDetections]:
    """Write `mot/NAME.txt` for every video, in the format of results of the MOT Challenge; see `text_file`.

    Older files of these names are removed first.

    A line per object that is in a track: frame, track, left, top, width, height, score, -1, -1, -1. Frames, tracks and
    pixels count from 1, as the format requires: the corner of the image is (1, 1). The format has no classes.

    Args:
        folder: The folder, which exists.
        names: The name of each source; see `file_names`.
        live: Write each line at once.
    """
    paths = {source: folder / "mot" / f"{name}.txt" for source, name in names.items()}
    for path in paths.values():
        path.unlink(missing_ok=True)
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}  # that of the present video

        def add(detections: Detections) -> None:
            video, _, number = detections.source.rpartition("#")
            if video not in files:
                stack.close()
                files.clear()
                files[video] = stack.enter_context(text_file(paths[video], live=live))
            for box, score, track in zip(
                detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.tracks(), strict=True
            ):
                left, top, right, bottom = box
                place = f"{left + 1:.2f},{top + 1:.2f},{right - left:.2f},{bottom - top:.2f}"
                if track:
                    files[video].write(f"{int(number) + 1},{track},{place},{score:.4f},-1,-1,-1\n")

        yield add


def yolo_classes(categories: Sequence[Category]) -> str:
    """Return the content of `classes.txt`.

    Raises:
        ConfigError: It cannot hold the name of a class.
    """
    return names_text([each.name for each in categories], "--format yolo", "write another format")


def yolo_labels(folder: Path, names: Mapping[str, str], categories: Sequence[Category]) -> AddDetections:
    """Write `classes.txt` to a folder, and `labels/NAME.txt` for every image; see `Detections.to_yolo`.

    Args:
        folder: The folder, which exists.
        names: The name of each source; see `file_names`.
        categories: The classes by label.

    Raises:
        ConfigError: `classes.txt` cannot hold the name of a class.
    """
    write_text(folder / CLASSES, yolo_classes(categories))
    (folder / "labels").mkdir(exist_ok=True)

    def add(detections: Detections) -> None:
        write_text(folder / "labels" / f"{name_of(detections.source, names)}.txt", detections.to_yolo())

    return add


def mask_images(folder: Path, names: Mapping[str, str]) -> AddDetections:
    """Write `masks/NAME.png` for every image: a palette image, as in Pascal VOC.

    The index n is the n-th detection of the image, by descending score; 0 is the background. Where masks overlap, that
    with the highest score is on top. With more than `MAX_PALETTE` detections it is a 16-bit image without a palette.

    Args:
        folder: The folder, which exists.
        names: The name of each source; see `file_names`.
    """
    (folder / "masks").mkdir(exist_ok=True)
    colours = [value for index in range(MAX_PALETTE) for value in PALETTE[index % len(PALETTE)]]

    def add(detections: Detections) -> None:
        masks = detections.known_masks("masks")
        has_palette = len(masks) <= MAX_PALETTE
        indices = mask_numbers(masks, detections.size)
        image = Image.fromarray(indices.astype(np.uint8 if has_palette else np.uint16))
        if has_palette:
            image.putpalette([0, 0, 0, *colours])
        with atomic(folder / "masks" / f"{name_of(detections.source, names)}.png") as temporary:
            image.save(temporary, format="PNG")

    return add
