"""The images of the report on which the detector does worst and best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from querybox.data import DetectionData, ImageRecord
from querybox.data.tiff import read_picture
from querybox.errors import ImageError
from querybox.evaluation.draw import draw_errors
from querybox.evaluation.errors import ImageErrors
from querybox.evaluation.result import Evaluation
from querybox.html import jpeg_url, metric
from querybox.inspect import write_page
from querybox.inspect.annotated import trace_record
from querybox.modules.detector import DetectionTransformer

BEST = 4
MAX_SIDE = 800
"""Pixels of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image, or a part of one, as the report shows it."""

    name: str
    caption: str
    urls: Mapping[str, str]
    """Pictures by what they show; empty if the image can no longer be read."""
    problem: str
    """Why it cannot be read."""
    inspector: str | None = None
    """Address of its inspector page, relative to the report."""


def worst_images(evaluation: Evaluation, data: DetectionData, count: int) -> list[ImageRecord]:
    """Return the `count` images with the lowest F1 among those with errors, then with the most errors."""
    f1, errors = evaluation.operating_point.image_f1, evaluation.errors
    candidates = [record for record in data.images if len(errors[record.id])]
    return sorted(candidates, key=lambda record: (f1[record.id], -len(errors[record.id])))[:count]


def best_images(
    evaluation: Evaluation, data: DetectionData, worst: Sequence[ImageRecord]
) -> list[ImageRecord]:
    """Return the images with the highest F1 among those with objects, then with the most objects; none of `worst`."""
    f1, excluded = evaluation.operating_point.image_f1, {record.id for record in worst}
    others = [record for record in data.images if len(record.labels) and record.id not in excluded]
    return sorted(others, key=lambda record: (-f1[record.id], -len(record.labels)))[:BEST]


def write_inspectors(
    folder: Path,
    detector: DetectionTransformer,
    records: Sequence[ImageRecord],
    data: DetectionData,
    callback: Callable[[ImageRecord], object],
) -> dict[int, str]:
    """Write an inspector page of each image into ``inspect`` in the folder.

    Returns:
        The address of each page relative to the folder, by image id. Images that can no longer be read have none.
    """
    (folder / "inspect").mkdir(exist_ok=True)
    pages = {}
    for number, record in enumerate(records, 1):
        try:
            trace = trace_record(detector, record, data)
        except ImageError:  # the report says so
            continue
        address = f"inspect/worst_{number:02}.html"  # safe, whatever the image is called
        write_page(folder / address, [trace], title=f"Inspector: {record.path.name}")
        pages[record.id] = address
        callback(record)
    return pages


def make_example(evaluation: Evaluation, record: ImageRecord, inspector: str | None = None) -> Example:
    """Draw the objects and the detections of an image."""
    errors = evaluation.errors[record.id]
    detections = evaluation.detections[record.id].above(evaluation.operating_point.threshold)
    urls, problem = {}, ""
    try:
        size = (record.height, record.width)
        image = read_picture(record.file, size, pixel_range=detections.pixel_range)
    except ImageError as error:
        problem = str(error)
    else:
        objects, found = draw_errors(image, record, detections, errors)
        urls = {"Objects": jpeg_url(objects, MAX_SIDE), "Detections": jpeg_url(found, MAX_SIDE)}
    return Example(
        name=record.path.name,
        caption=f"F1 {metric(evaluation.operating_point.image_f1[record.id])}. {count_errors(errors)}",
        urls=urls,
        problem=problem,
        inspector=inspector,
    )


def count_errors(errors: ImageErrors) -> str:
    """Return, in words, how many objects of an image were found and how many errors of each type there are."""
    parts = [f"{errors.true_positives} found"]
    for name, types in (
        ("false negatives", [error.error_type for error in errors.false_negatives]),
        ("false positives", [error.error_type for error in errors.false_positives]),
    ):
        if types:
            counts = ", ".join(f"{count} {error_type}" for error_type, count in Counter(types).most_common())
            parts.append(f"{name}: {counts}")
    return "; ".join(parts) + "."
