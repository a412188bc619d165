"""Traces of many images, with their objects if they are part of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from querybox.data import DetectionData, ImageRecord
from querybox.data.loader import to_target
from querybox.data.settings import OVERLAP
from querybox.data.tiled import VisibleParts
from querybox.data.tiling import Tile, Tiling
from querybox.data.transforms import Sample
from querybox.errors import DataError
from querybox.evaluation.evaluate import labels_by_name
from querybox.inference.sources import Frame, Source, find_sources, image_views, read_frames
from querybox.inspect.tracing import Trace, trace
from querybox.modules.detector import DetectionTransformer


def traces(
    detector: DetectionTransformer,
    sources: Source | Sequence[Source],
    data: DetectionData | None = None,
    *,
    tile: Tile = None,
    overlap: float = OVERLAP,
) -> Iterator[Trace]:
    """Trace one image after another.

    Args:
        detector: The model.
        sources: Files, folders, patterns or pixels, as `predict` takes them.
        data: A dataset that contains the images; crowds are ignored. Its classes must have the names of the detector's,
            in any order.
        tile: See `predict`: an image that does not fit one tile is traced as a whole, and then each of its tiles.
        overlap: See `predict`.

    Raises:
        ConfigError: The detector and the data have different classes, a number is out of its range, or `tile` is "auto"
            and the model does not state the sizes of objects.
        DataError: A source does not exist or is not part of the data.
        ImageError: An image cannot be read.
    """
    found = find_sources(sources)
    tiling = Tiling.of(tile, overlap, detector.preprocessing)
    if data is None:
        for frame in read_frames(found, pixel_range=detector.preprocessing.pixel_range, tiling=tiling):
            yield replace(trace(detector, frame.pixels), source=name_view(frame))
        return
    for record in [find_record(source, data) for source in found]:
        yield from trace_views(detector, record, data, tiling)


def trace_record(detector: DetectionTransformer, record: ImageRecord, data: DetectionData) -> Trace:
    """Trace an image of a dataset, with its objects; see `traces`."""
    return next(trace_views(detector, record, data, tiling=None))


def trace_views(
    detector: DetectionTransformer, record: ImageRecord, data: DetectionData, tiling: Tiling | None
) -> Iterator[Trace]:
    """Trace the views of an image of a dataset, with the objects that training on tiles has in them; see `traces`."""
    # Detector labels by dataset label.
    labels = labels_by_name(detector.categories, data.categories).argsort()
    visible = VisibleParts(record)
    size = (record.height, record.width)  # of the image in the orientation of the boxes
    for frame in image_views(record.file, detector.preprocessing.pixel_range, tiling, size):
        part = record if frame.view is None else visible.in_window(frame.view.window, number=1)
        real = ~part.crowd
        height, width = frame.pixels.shape[1:]
        scale = torch.tensor([width / part.width, height / part.height]).repeat(2)  # of a reduced TIFF
        objects = Sample(
            pixels=frame.pixels,
            boxes_xyxy=torch.from_numpy(part.boxes_xyxy[real]).float() * scale,
            labels=labels[torch.from_numpy(part.labels[real])],
        )
        yield replace(trace(detector, frame.pixels, to_target(objects)), source=name_view(frame))


def name_view(frame: Frame) -> str:
    """Return the name of an image, and the place of a tile in it."""
    if frame.view is None or frame.view.index == 0:
        return frame.source
    left, top, width, height = frame.view.window
    return f"{frame.source}, {width}x{height} pixels at ({left}, {top})"


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
