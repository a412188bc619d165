"""Traces of many images, with their objects if they are part of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from querybox.data import DetectionData, ImageRecord, read_pixels
from querybox.data.loader import to_target
from querybox.data.transforms import Sample
from querybox.errors import DataError
from querybox.evaluation.evaluate import labels_by_name
from querybox.inference.sources import Source, find_sources, read_frames
from querybox.inspect.tracing import Trace, trace
from querybox.modules.detector import DetectionTransformer


def traces(
    detector: DetectionTransformer, sources: Source | Sequence[Source], data: DetectionData | None = None
) -> Iterator[Trace]:
    """Trace one image after another.

    Args:
        detector: The model.
        sources: Files, folders, patterns or pixels, as `predict` takes them.
        data: A dataset that contains the images; crowds are ignored. Its classes must have the names of the detector's,
            in any order.

    Raises:
        ConfigError: The detector and the data have different classes.
        DataError: A source does not exist or is not part of the data.
        ImageError: An image cannot be read.
    """
    found = find_sources(sources)
    if data is None:
        for frame in read_frames(found, pixel_range=detector.preprocessing.pixel_range):
            yield replace(trace(detector, frame.pixels), source=frame.source)
        return
    for record in [find_record(source, data) for source in found]:
        yield trace_record(detector, record, data)


def trace_record(detector: DetectionTransformer, record: ImageRecord, data: DetectionData) -> Trace:
    """Trace an image of a dataset, with its objects; see `traces`."""
    labels = labels_by_name(
        detector.categories, data.categories
    ).argsort()  # detector labels by dataset label
    real = ~record.crowd
    pixel_range = detector.preprocessing.pixel_range
    pixels = read_pixels(record, pixel_range=pixel_range)  # in the orientation of the boxes
    objects = Sample(
        pixels=pixels,
        boxes_xyxy=torch.from_numpy(record.boxes_xyxy[real]).float(),
        labels=labels[torch.from_numpy(record.labels[real])],
    )
    return replace(trace(detector, pixels, to_target(objects)), source=str(record.path))


def find_record(source: object, data: DetectionData) -> ImageRecord:
    """Return the record of an image, found by its path or else by its file name if that is unique.

    Raises:
        DataError: The data do not contain the image.
    """
    if isinstance(source, Path):
        same_name = [record for record in data.images if record.path.name == source.name]
        same = [record for record in same_name if record.path.resolve() == source.resolve()]
        if len(candidates := same or same_name) == 1:
            return candidates[0]
    raise DataError(
        f"{data.source}: has no annotations of {source}; expected an image that it lists: "
        "use another split, or omit the annotations"
    )
