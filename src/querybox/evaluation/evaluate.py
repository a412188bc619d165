"""The COCO detection metrics of a detector, or of detections, on a labelled dataset."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from querybox.data import DetectionData, ImageRecord, read_dataset, read_pixels
from querybox.data.settings import MAX_CORRUPT
from querybox.errors import ConfigError, DataError, ImageError
from querybox.evaluation.average_precision import average_precision
from querybox.evaluation.confusion import agreement
from querybox.evaluation.errors import mistakes_in
from querybox.evaluation.result import CategoryResult, Evaluation
from querybox.fast import fastest
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.predict import detect_frames
from querybox.inference.sources import Frame
from querybox.structures import Category
from querybox.text import listed

logger = logging.getLogger(__name__)


def evaluate(
    engine: Engine,
    data: DetectionData | str | Path,
    *,
    split: str | None = None,
    batch_size: int = 8,
    max_corrupt: float = MAX_CORRUPT,
    each: Callable[[Detections], object] | None = None,
) -> Evaluation:
    """Detect the objects of every image and measure how well they are found.

    The 100 best detections of each image count, whatever their score. Images that cannot be read do not count; the
    evaluation names them.

    Args:
        engine: The model: a `Detector`, or whatever else runs one. Its classes must have the names of the data's
            classes, in any order.
        data: A dataset, or the path of one in a format that `read_dataset` knows.
        split: Which part of the dataset at the path, such as ``"val"``.
        batch_size: Images in one forward pass, on an accelerator; it does not change the result.
        max_corrupt: Share of the images (0-1) that may be unreadable.
        each: Is called with the detections of each image as they come, to show progress.

    Raises:
        ConfigError: The detector and the data have different classes, `split` is given for data already read, or
            `batch_size` is less than 1.
        DataError: The dataset, or too many of its images, cannot be read.
    """
    if not isinstance(data, DetectionData):
        data = read_dataset(data, split, max_corrupt=max_corrupt)
    elif split is not None:
        raise ConfigError(
            f"evaluate got split={split!r} with data already read; give the path, or leave split out"
        )
    labels_by_name(engine.categories, data.categories)  # fails before the work, not after it
    found, unreadable = detect_records(engine, data.images, batch_size=batch_size, each=each)
    return measure(data, found, data.left_out | unreadable, max_corrupt)


def measure(
    data: DetectionData,
    detections: Mapping[int, Detections],
    unreadable: Mapping[int, str],
    max_corrupt: float,
) -> Evaluation:
    """Measure `detections` by the images that could be read.

    Args:
        data: The images and their objects.
        detections: By image id.
        unreadable: Why the other images could not be read, by image id.
        max_corrupt: Share of the images (0-1) that this may be.

    Raises:
        DataError: There are more.
    """
    reasons = listed(list(unreadable.values()))
    total = len(unreadable.keys() | {image.id for image in data.images})
    if len(unreadable) > max_corrupt * total:
        raise DataError(
            f"{data.source}: {len(unreadable)} of {total} images cannot be read, more than "
            f"max_corrupt = {max_corrupt:g} allows: {reasons}"
        )
    if unreadable:
        logger.warning(
            "%s: %d images cannot be read and do not count: %s", data.source, len(unreadable), reasons
        )
    evaluation = coco_metrics(data.only(detections), detections)
    return dataclasses.replace(evaluation, unreadable=unreadable)


def detect_records(
    engine: Engine,
    images: Sequence[ImageRecord],
    *,
    batch_size: int = 8,
    each: Callable[[Detections], object] | None = None,
) -> tuple[dict[int, Detections], dict[int, str]]:
    """Return the 100 best detections of each image by its id, in pixels of the image as it was annotated.

    And why the other images could not be read, by their ids.
    """
    readable: list[int] = []
    unreadable: dict[int, str] = {}

    def frames() -> Iterator[Frame]:
        # Not `predict` and paths: an image may have to be left unturned, as its boxes were drawn.
        for record in images:
            try:
                pixels = read_pixels(record)
            except ImageError as error:
                unreadable[record.id] = str(error)
            else:
                readable.append(record.id)
                yield Frame(source=str(record.path), pixels=pixels)

    by_id = {}
    for place, one in enumerate(detect_frames(fastest(engine), frames(), top_k=100, batch_size=batch_size)):
        by_id[readable[place]] = one
        if each:
            each(one)
    return by_id, unreadable


def coco_metrics(data: DetectionData, detections: Mapping[int, Detections]) -> Evaluation:
    """Measure `detections` as the COCO challenge does (cocodataset.org/#detection-eval).

    Equal to pycocotools: crowd regions are ignored, images without objects count, at most 100 detections an image
    and class.

    Args:
        data: The images and their objects.
        detections: By image id. Their classes are matched with the data's by name. An image may be missing: nothing
            was found in it.

    Raises:
        ConfigError: The detections and the data have different classes.
        DataError: Detections belong to an image that the data lack.
    """
    if unknown := detections.keys() - {record.id for record in data.images}:
        raise DataError(
            f"{data.source}: detections of {len(unknown)} images that the data lack, the first with id {min(unknown)}; "
            "evaluate against the data that were predicted on"
        )
    aligned = {
        record.id: align(detections[record.id], data.categories)
        if record.id in detections
        else nothing_in(record, data.categories)
        for record in data.images
    }
    metrics, precision = average_precision(data, aligned)
    agreed = agreement(data, aligned)
    counts = np.bincount(
        np.concatenate(
            [np.zeros(0, dtype=np.int64), *(record.labels[~record.crowd] for record in data.images)]
        ),
        minlength=len(data.categories),
    )
    return Evaluation(
        metrics=metrics,
        categories=tuple(
            CategoryResult(
                category=category,
                objects=int(counts[label]),
                AP=float(precision[:, :, label].mean()),
                AP50=float(precision[0, :, label].mean()),
            )
            for label, category in enumerate(data.categories)
        ),
        precision=precision,
        agreement=agreed,
        mistakes={
            record.id: mistakes_in(
                record, aligned[record.id].above(agreed.threshold), agreed.assigned[record.id]
            )
            for record in data.images
        },
        detections=aligned,
        images=len(data.images),
        objects=data.num_objects,
        crowds=sum(int(record.crowd.sum()) for record in data.images),
    )


def align(found: Detections, categories: tuple[Category, ...]) -> Detections:
    """Return the detections with labels and categories of the data."""
    if found.categories == categories:
        return found
    labels = labels_by_name(found.categories, categories)[found.labels]
    return dataclasses.replace(found, labels=labels, categories=categories)


def nothing_in(record: ImageRecord, categories: tuple[Category, ...]) -> Detections:
    """Return no detections, of one image."""
    return Detections(
        boxes_xyxy=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long),
        categories=categories,
        size=(record.height, record.width),
        source=str(record.path),
    )


def labels_by_name(ours: Sequence[Category], theirs: Sequence[Category]) -> Int[Tensor, " C"]:
    """Return the data's label of each of the detector's classes.

    Raises:
        ConfigError: Some class is known to one of them only.
    """
    known = {category.name: label for label, category in enumerate(theirs)}
    surplus = [repr(category.name) for category in ours if category.name not in known]
    lacking = [repr(name) for name in known if name not in {category.name for category in ours}]
    if surplus or lacking:
        raise ConfigError(
            f"the detector's {len(ours)} classes are not the data's {len(theirs)}: "
            f"the detector lacks {listed(lacking) or 'none'}, the data lack {listed(surplus) or 'none'}; "
            "give both the same class names (their order and ids do not matter)"
        )
    return torch.tensor([known[category.name] for category in ours], dtype=torch.long)
