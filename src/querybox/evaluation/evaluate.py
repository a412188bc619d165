"""COCO detection metrics of a detector, or of given detections, on an annotated dataset."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from querybox.arguments import require_number, require_type
from querybox.data import DetectionData, ImageRecord, read_dataset
from querybox.data.settings import MAX_CORRUPT, OVERLAP
from querybox.data.tiling import Tile, Tiling
from querybox.errors import ConfigError, DataError, ImageError
from querybox.evaluation.average_precision import average_precision
from querybox.evaluation.confusion import best_operating_point
from querybox.evaluation.errors import find_errors
from querybox.evaluation.mask_precision import mask_average_precision, with_masks
from querybox.evaluation.panoptic_quality import panoptic_quality
from querybox.evaluation.result import CategoryResult, Evaluation, MaskMetrics
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.fitting import require_fitting
from querybox.inference.optimized_model import as_optimized
from querybox.inference.options import Options
from querybox.inference.predict import detect_frames
from querybox.inference.sources import Frame, image_views
from querybox.structures import Category
from querybox.text import listed

logger = logging.getLogger(__name__)


def evaluate(
    engine: Engine,
    data: DetectionData | str | Path,
    *,
    split: str | None = None,
    tile: Tile = None,
    overlap: float = OVERLAP,
    batch_size: int = 8,
    max_corrupt: float = MAX_CORRUPT,
    callback: Callable[[Detections], object] | None = None,
) -> Evaluation:
    """Run a model on every image of a dataset and compute the COCO metrics.

    The 100 highest-scoring detections of each image are evaluated, whatever their score; with tiles, the merged ones of
    the 100 of each tile. Images that cannot be read are excluded and listed in `Evaluation.unreadable`; TIFFs that are
    too large to be decoded as a whole are read in parts, with tiles alone.

    Args:
        engine: The model: a `Detector` or another `Engine`. Its class names must be those of the data, in any order.
        data: A dataset, or the path of one in a format supported by `read_dataset`.
        split: The part of the dataset at the path to evaluate, such as ``"val"``.
        tile: Side in pixels of tiles, or "auto", as for `querybox.predict`.
        overlap: Minimum overlap of neighbouring tiles, as for `querybox.predict`.
        batch_size: Images per forward pass on an accelerator; the result does not depend on it.
        max_corrupt: Fraction of the images (0-1) that may be unreadable.
        callback: Called with the detections of each image as they are computed, e.g. to show progress.

    Raises:
        ConfigError: The model and the data have different classes, `split` is given for data already read, a number is
            out of its range, `tile` is "auto" and the model does not state the sizes of objects, or the model is
            exported for one size, which an image exceeds.
        DataError: The dataset, or more than `max_corrupt` of its images, cannot be read.
    """
    require_type("evaluate", engine, Engine, "a model: load it with querybox.load")
    require_number("evaluate", "max_corrupt", max_corrupt, 0, 1)
    if not isinstance(data, DetectionData):
        data = read_dataset(data, split, max_corrupt=max_corrupt)
    elif split is not None:
        raise ConfigError(
            f"evaluate got split={split!r} with data already read; pass the path, or omit split"
        )
    labels_by_name(engine.categories, data.categories)  # fail before the work is done, not after
    detections, unreadable = detect_records(
        engine,
        data.images,
        tiling=Tiling.of(tile, overlap, engine.preprocessing),
        batch_size=batch_size,
        callback=callback,
    )
    return measure(data, detections, data.excluded | unreadable, max_corrupt)


def measure(
    data: DetectionData,
    detections: Mapping[int, Detections],
    unreadable: Mapping[int, str],
    max_corrupt: float,
) -> Evaluation:
    """Compute the metrics of detections on the images that could be read.

    Args:
        data: The images and their objects.
        detections: Detections of each readable image, by image id.
        unreadable: Why each other image could not be read, by image id.
        max_corrupt: Fraction of the images (0-1) that may be unreadable.

    Raises:
        DataError: More than `max_corrupt` of the images are unreadable.
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
            "%s: %d images cannot be read and are not evaluated: %s", data.source, len(unreadable), reasons
        )
    evaluation = coco_metrics(data.only(detections), detections)
    return dataclasses.replace(evaluation, unreadable=unreadable)


def detect_records(
    engine: Engine,
    images: Sequence[ImageRecord],
    *,
    tiling: Tiling | None = None,
    batch_size: int = 8,
    callback: Callable[[Detections], object] | None = None,
) -> tuple[dict[int, Detections], dict[int, str]]:
    """Detect the objects of each image.

    Args:
        engine: The model.
        images: The images.
        tiling: The tiles that each image is divided into; None for none.
        batch_size: Images per forward pass on an accelerator.
        callback: Called with the detections of each image as they are computed.

    Returns:
        The detections of each image by image id, in pixels of the image as it was annotated: the 100 that score
        highest, or the merged ones of its tiles; and why each other image could not be read, by image id.

    Raises:
        ConfigError: The model is exported for one size, which an image exceeds.
    """
    require_fitting(engine, ((str(each.file), (each.height, each.width)) for each in images), tiling)
    readable: list[int] = []
    unreadable: dict[int, str] = {}

    def frames() -> Iterator[Frame]:
        # Not `predict` with paths, which applies the EXIF orientation: annotations may refer to the image without it.
        for record in images:
            size = (record.height, record.width)
            try:
                for frame in image_views(record.file, engine.preprocessing.pixel_range, tiling, size):
                    if frame.is_last:  # before its detection, after which the loop goes on
                        readable.append(record.id)
                    yield frame
            except ImageError as error:
                unreadable[record.id] = str(error)

    by_id = {}
    options = Options(threshold=0.0, top_k=100, batch_size=batch_size)
    for index, detections in enumerate(detect_frames(as_optimized(engine), frames(), options)):
        by_id[readable[index]] = detections
        if callback:
            callback(detections)
    return by_id, unreadable


def coco_metrics(data: DetectionData, detections: Mapping[int, Detections]) -> Evaluation:
    """Compute the metrics of the COCO detection challenge (cocodataset.org/#detection-eval).

    The results are those of pycocotools: crowd regions are ignored, images without objects count, and at most 100
    detections per image and class are used. Of an image that was searched in tiles, for boxes 100 per view and class
    are used, because large images have more objects.

    Args:
        data: The images and their objects.
        detections: Detections by image id, in any order of their scores, whose classes are matched with those of the
            data by name. An image that is absent has no detections.

    Raises:
        ConfigError: The detections and the data have different classes.
        DataError: There are detections for an image that is not in the data, or that has another size there.
    """
    check_images(data, detections)
    aligned = {
        record.id: align(detections[record.id], data.categories)
        if record.id in detections
        else no_detections(record, data.categories)
        for record in data.images
    }
    metrics, precision = average_precision(data, aligned)
    operating_point = best_operating_point(data, aligned)
    masked = with_masks(data, aligned)
    return Evaluation(
        metrics=metrics,
        categories=category_results(data, precision),
        precision=precision,
        operating_point=operating_point,
        errors={
            record.id: find_errors(record, operating_point.assignments[record.id]) for record in data.images
        },
        detections=aligned,
        images=len(data.images),
        objects=data.num_objects,
        crowds=sum(int(record.crowd.sum()) for record in data.images),
        masks=None if masked is None else mask_metrics(masked, aligned),
        panoptic=panoptic_quality(masked, aligned, operating_point.threshold)
        if masked is not None and masked.panoptic
        else None,
    )


def check_images(data: DetectionData, detections: Mapping[int, Detections]) -> None:
    """Raise `DataError` if detections are of an image that is not in the data, or that has another size there."""
    if unknown := detections.keys() - {record.id for record in data.images}:
        raise DataError(
            f"{data.source}: got detections for {len(unknown)} images that are not in the data, the first with id "
            f"{min(unknown)}; evaluate on the dataset that the detections were computed for"
        )
    for record in data.images:
        size = (record.height, record.width)
        if record.id in detections and detections[record.id].size != size:
            found = "x".join(map(str, detections[record.id].size))
            raise DataError(
                f"{record.file}: got detections of an image of {found} pixels; expected {size[0]}x{size[1]} (height x "
                "width), the size that was annotated: detect in images of this size, turned as they were annotated"
            )


def mask_metrics(data: DetectionData, detections: Mapping[int, Detections]) -> MaskMetrics:
    """Compute the metrics of masks.

    Args:
        data: The images and their objects, all of which have a mask.
        detections: Detections of every image by image id, with masks and with the labels of `data`.
    """
    (metrics, precision), (boundary_metrics, boundary_precision) = mask_average_precision(data, detections)
    return MaskMetrics(
        metrics=metrics,
        categories=category_results(data, precision),
        precision=precision,
        boundary_metrics=boundary_metrics,
        boundary_categories=category_results(data, boundary_precision),
        images=len(data.images),
    )


def category_results(
    data: DetectionData, precision: Float[np.ndarray, "T R C"]
) -> tuple[CategoryResult, ...]:
    """Return the metrics of each class.

    Args:
        data: The images and their objects.
        precision: Interpolated precision by IoU threshold, recall and label.
    """
    labels = [np.zeros(0, dtype=np.int64), *(record.labels[~record.crowd] for record in data.images)]
    counts = np.bincount(np.concatenate(labels), minlength=len(data.categories))
    return tuple(
        CategoryResult(
            category=category,
            objects=int(counts[label]),
            AP=float(precision[:, :, label].mean()),
            AP50=float(precision[0, :, label].mean()),
        )
        for label, category in enumerate(data.categories)
    )


def align(detections: Detections, categories: tuple[Category, ...]) -> Detections:
    """Return the detections with the labels and categories of the data, by descending score."""
    if (detections.scores[1:] > detections.scores[:-1]).any():  # of another model
        detections = detections.where(detections.scores.argsort(descending=True, stable=True))
    if detections.categories == categories:
        return detections
    labels = labels_by_name(detections.categories, categories)[detections.labels]
    return dataclasses.replace(detections, labels=labels, categories=categories)


def no_detections(record: ImageRecord, categories: tuple[Category, ...]) -> Detections:
    """Return an empty `Detections` for an image."""
    return Detections(
        boxes_xyxy=torch.zeros(0, 4, device="cpu"),
        scores=torch.zeros(0, device="cpu"),
        labels=torch.zeros(0, dtype=torch.long, device="cpu"),
        categories=categories,
        size=(record.height, record.width),
        source=str(record.file),
    )


def labels_by_name(
    detector_categories: Sequence[Category], data_categories: Sequence[Category]
) -> Int[Tensor, " C"]:
    """Return the data's label of each of the detector's classes.

    Raises:
        ConfigError: A class occurs in one of the two only.
    """
    labels = {category.name: label for label, category in enumerate(data_categories)}
    detector_names = {category.name: None for category in detector_categories}
    detector_only = [repr(name) for name in detector_names if name not in labels]
    data_only = [repr(name) for name in labels if name not in detector_names]
    if detector_only or data_only:
        raise ConfigError(
            f"the detector's {len(detector_categories)} classes differ from the data's {len(data_categories)}: "
            f"the detector lacks {listed(data_only) or 'none'}, the data lack {listed(detector_only) or 'none'}; "
            "use the same class names in both (order and ids do not matter)"
        )
    return torch.tensor(
        [labels[category.name] for category in detector_categories], dtype=torch.long, device="cpu"
    )
