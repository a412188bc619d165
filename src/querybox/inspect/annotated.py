"""Traces of many images, with their objects where a dataset knows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from querybox.data import DetectionData, ImageRecord, read_pixels
from querybox.data.loader import as_target
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
        data: A dataset that has the images; crowds are left out. Its classes need the detector's names, in any order.

    Raises:
        ConfigError: The detector and the data have different classes.
        DataError: A source does not exist, or the data lack it.
        ImageError: An image cannot be read.
    """
    found = find_sources(sources)
    if data is None:
        for frame in read_frames(found):
            yield replace(trace(detector, frame.pixels), source=frame.source)
        return
    for record in [find_record(source, data) for source in found]:
        yield trace_record(detector, record, data)


def trace_record(detector: DetectionTransformer, record: ImageRecord, data: DetectionData) -> Trace:
    """Trace an image of a dataset, with its objects; see `traces`."""
    labels = labels_by_name(detector.categories, data.categories).argsort()  # the detector's, by the data's
    real = ~record.crowd
    pixels = read_pixels(record)  # turned as its boxes are
    objects = Sample(
        pixels=pixels,
        boxes_xyxy=torch.from_numpy(record.boxes_xyxy[real]).float(),
        labels=labels[torch.from_numpy(record.labels[real])],
    )
    return replace(trace(detector, pixels, as_target(objects)), source=str(record.path))


def find_record(source: object, data: DetectionData) -> ImageRecord:
    """Return what the data know of an image: by its path, else by its name where only one has it.

    Raises:
        DataError: They do not know it.
    """
    if isinstance(source, Path):
        same_name = [record for record in data.images if record.path.name == source.name]
        same = [record for record in same_name if record.path.resolve() == source.resolve()]
        if len(found := same or same_name) == 1:
            return found[0]
    raise DataError(
        f"{data.source}: does not tell which objects are in {source}; expected an image that it lists: "
        "name another split, or leave the annotations out"
    )
