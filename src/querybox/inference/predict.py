"""Prediction on images and videos, in the order of the sources and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from querybox.data.settings import OVERLAP
from querybox.data.tiling import Tile, Tiling
from querybox.data.transforms import resize
from querybox.errors import ConfigError, ImageError, PredictionError
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine, evaluating
from querybox.inference.fitting import file_sizes, require_fitting
from querybox.inference.live import LiveStream
from querybox.inference.masks import detection_masks
from querybox.inference.optimized_model import as_optimized
from querybox.inference.options import Options
from querybox.inference.postprocess import postprocess
from querybox.inference.sources import Frame, Pixels, Source, find_sources, read_frames
from querybox.inference.tiles import View, merged
from querybox.inference.trackers import TrackerName, lowest_score
from querybox.inference.tracking import PresentationTimes, require_tracking, tracked
from querybox.mask_embeddings import Masks
from querybox.structures import ImageBatch, Predictions, Preprocessing

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A preprocessed frame, and what is needed to map its predictions back."""

    position: int
    """Index in the order of the sources, from 0."""
    source: str
    """See `Detections.source`."""
    size: tuple[int, int]
    """(height, width) of the original image, or of its tile, in pixels."""
    view: View | None = None
    """See `Frame.view`."""
    time: float | None = None
    """See `Detections.time`."""
    pixels: UInt8[Tensor, "3 h w"]
    """Resized RGB image."""

    @property
    def name(self) -> str:
        """What messages call the frame."""
        return self.source or "an image in memory"

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the resized image in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def predict(
    model: Engine,
    sources: Source | Sequence[Source] | LiveStream,
    *,
    threshold: float = 0.5,
    top_k: int = 100,
    nms: float | None = None,
    tile: Tile = None,
    overlap: float = OVERLAP,
    track: TrackerName | None = None,
    batch_size: int = 8,
    on_error: Callable[[ImageError], object] | None = None,
) -> Iterator[Detections]:
    """Detect objects in images and videos, and yield the detections of one image after the other.

        for detections in querybox.predict(detector, "video.mp4"):
            print(detections.source, detections.names)

    A detector is optimised first; see `querybox.Detector.optimize`. The detections of an image do not depend on the
    other images. On a CPU images are processed one at a time (see `effective_batch_size`); on an accelerator, images
    share a batch only if they have the same size after resizing, so that none is padded. At most ``8 * batch_size``
    resized images wait for others of their size, so the memory does not grow with the number of images.

    Args:
        model: A `Detector`, its optimised copy, an exported model, or another `Engine`.
        sources: Files, folders, globs, videos or images in memory; see `querybox.inference.sources.find_sources`. Or an
            open `LiveStream`, whose frames are detected in one at a time.
        threshold: Minimum score of detections (0-1).
        top_k: Maximum number of detections per image, or with `tile` of each tile and of the whole image.
        nms: IoU threshold (0-1) of class-wise non-maximum suppression; None for no suppression.
        tile: Side in pixels of the tiles that are searched for objects in addition to the whole image, for small
            objects in large images; see `querybox.data.tiling`. "auto" for the side at which objects appear to the
            model as large as in training. None for no tiles. An image that fits one tile is not divided.
        overlap: Minimum overlap of neighbouring tiles, as a fraction of their side (0-0.9).
        track: Tracker that numbers the objects of a video in `Detections.track_ids`: ``"bytetrack"``, ``"sort"`` or
            ``"ocsort"``. With ``"bytetrack"``, detections that continue a track may score less than `threshold`.
        batch_size: Maximum number of images in one forward pass on an accelerator.
        on_error: Called with the error of each file that cannot be read, which is skipped; None to raise it.

    Returns:
        The detections of each image, or of each frame of a video, in the order of the sources.

    Raises:
        ConfigError: An argument is out of its range; `tile` is "auto" and the model does not state the sizes of
            objects; objects are to be tracked in an image; or the model is exported for one size, which an image
            exceeds.
        DataError: A source does not exist or contains no image.
        ImageError: An image cannot be read and `on_error` is None; raised when the iterator reaches the image.
        MissingExtraError: The package trackers is not installed.
        PredictionError: The predictions for an image are NaN or infinite.
    """
    options = Options(
        threshold=threshold, top_k=top_k, nms=nms, tile=tile, overlap=overlap, batch_size=batch_size
    )
    found: list[Path | Pixels | LiveStream] = []
    if isinstance(sources, LiveStream):
        found = [sources]
        options = replace(options, batch_size=1)  # its next frame is taken when this one has been processed
    else:
        found += find_sources(sources)
    if track is not None:
        require_tracking(track, found)
        options = replace(options, threshold=lowest_score(track, threshold))
    tiling = Tiling.of(tile, overlap, model.preprocessing)
    require_fitting(model, file_sizes(found), tiling)
    frames = read_frames(found, on_error, pixel_range=model.preprocessing.pixel_range, tiling=tiling)
    if track is None:
        return detect_frames(as_optimized(model), frames, options)
    times = PresentationTimes()
    results = detect_frames(as_optimized(model), times.recorded(frames), options)
    return tracked(results, times, track, threshold)


def detect_frames(engine: Engine, frames: Iterable[Frame], options: Options) -> Iterator[Detections]:
    """Detect the objects in each image, in order.

    Args:
        engine: The model.
        frames: The images, or all views of each, which are those of `options.tile`.
        options: What is detected. Masks of detections that score less than the threshold are not computed.
    """
    inputs = prepare(frames, engine.preprocessing)
    batches = batch_by_shape(inputs, effective_batch_size(engine, options.batch_size))
    results = merged(in_order(detect_batches(engine, batches, options.top_k, options.threshold)))
    return results if options.nms is None else (detections.nms(options.nms) for detections in results)


def effective_batch_size(engine: Engine, batch_size: int) -> int:
    """Return the number of images per forward pass: 1 on a CPU, otherwise `batch_size`.

    On a CPU batches are no faster, because their feature maps do not fit the caches. Besides, rounding depends on the
    batch size, which can be enough for DINO to rank two proposals in the opposite order.
    """
    return 1 if engine.device.type == "cpu" else batch_size


def prepare(frames: Iterable[Frame], preprocessing: Preprocessing) -> Iterator[Input]:
    """Resize frames for the model."""
    for position, frame in enumerate(frames):
        resized = resize(
            frame.pixels, preprocessing.short_side, preprocessing.long_side, preprocessing.resizing
        )
        yield Input(
            position=position,
            source=frame.source,
            size=frame.size,
            view=frame.view,
            time=frame.time,
            pixels=resized,
        )


def batch_by_shape(inputs: Iterable[Input], batch_size: int) -> Iterator[list[Input]]:
    """Group inputs of equal shape into batches.

    A group is yielded when it is full, or when ``8 * batch_size`` inputs have followed its first.
    """
    groups: dict[torch.Size, list[Input]] = {}  # in the order of their first inputs
    for newest in inputs:
        shape = newest.pixels.shape
        groups.setdefault(shape, []).append(newest)
        if len(groups[shape]) == batch_size:
            yield groups.pop(shape)
            continue
        oldest = next(iter(groups))
        if newest.position - groups[oldest][0].position >= 8 * batch_size:
            yield groups.pop(oldest)
    yield from groups.values()


def detect_batches(
    engine: Engine, batches: Iterable[list[Input]], top_k: int, threshold: float
) -> Iterator[tuple[int, tuple[View | None, Detections]]]:
    """Yield the view and the detections of every input, with its position in the order of the sources."""
    for batch in batches:
        for item, detections in zip(batch, detect(engine, batch, top_k, threshold), strict=True):
            yield item.position, (item.view, detections)


def detect(engine: Engine, batch: Sequence[Input], top_k: int, threshold: float = 0.0) -> list[Detections]:
    """Detect the objects in inputs of one shape.

    Raises:
        ConfigError: The model takes no images of this shape.
        PredictionError: A score or a box is NaN or infinite.
    """
    try:
        with evaluating(engine), torch.inference_mode():
            predictions = run_batch(engine, batch)
    except ConfigError as error:
        raise ConfigError(f"{batch[0].name}: {error}") from None
    return to_detections(engine, predictions, batch, top_k, threshold)


def run_batch(engine: Engine, batch: Sequence[Input]) -> Predictions:
    """Run the model on inputs of one shape and return the predictions of the last decoder layer."""
    pixels = torch.stack([item.pixels for item in batch])  # [B, 3, H, W]
    sizes = torch.tensor([pixels.shape[2:]] * len(batch), device="cpu")  # [B, 2]
    images = ImageBatch.from_pixels(
        pixels.to(engine.device), sizes.to(engine.device), engine.preprocessing, padded=False
    )
    return engine(images).layers[-1]


def to_detections(
    engine: Engine, predictions: Predictions, batch: Sequence[Input], top_k: int, threshold: float = 0.0
) -> list[Detections]:
    """Convert the predictions for some inputs to detections that score at least `threshold`, in original pixels.

    Raises:
        PredictionError: A score or a box is NaN or infinite.
    """
    found, queries = detected_boxes(engine, predictions, batch, top_k, threshold)
    return found if predictions.masks is None else with_masks(found, predictions.masks, queries, batch)


def detected_boxes(
    engine: Engine, predictions: Predictions, batch: Sequence[Input], top_k: int, threshold: float
) -> tuple[list[Detections], Int[Tensor, "B K"]]:
    """Return detections without masks, and the queries of the `top_k` of each input; see `to_detections`."""
    original_sizes = torch.tensor([item.size for item in batch], device="cpu")  # [B, 2]
    *outputs, queries = postprocess(
        predictions,
        original_sizes.to(engine.device),
        top_k,
        clip_boxes=engine.preprocessing.clip_boxes,
    )
    scores, labels, boxes_xyxy = (tensor.cpu() for tensor in outputs)
    for row, item in enumerate(batch):
        # NaN scores are the highest to `topk`, so none is lost.
        if not (scores[row].isfinite().all() and boxes_xyxy[row].isfinite().all()):
            raise PredictionError(
                f"{item.name}: the model predicts NaN or infinite values: its weights are "
                "unusable, or the precision is too low for them; use precision='float32', or other weights"
            )
    found = [
        Detections(
            boxes_xyxy=boxes_xyxy[row],
            scores=scores[row],
            labels=labels[row],
            categories=engine.categories,
            size=item.size,
            source=item.source,
            pixel_range=engine.preprocessing.pixel_range,
            time=item.time,
        ).above(threshold)
        for row, item in enumerate(batch)
    ]
    return found, queries


@torch.inference_mode()
def with_masks(
    found: Sequence[Detections], masks: Masks, queries: Int[Tensor, "B K"], batch: Sequence[Input]
) -> list[Detections]:
    """Return detections with their masks, given those of all queries; see `detected_boxes`."""
    rles = detection_masks(
        masks,
        queries[:, : max(map(len, found), default=0)],
        [mask_boxes(each) for each in found],
        [item.size for item in batch],
        [item.resized for item in batch],
    )
    return [replace(each, masks=own) for each, own in zip(found, rles, strict=True)]


def mask_boxes(detections: Detections) -> Float[Tensor, "N 4"]:
    """Return the part of the image that each mask is cut to: its box, and for stuff, which has no extent, all of it."""
    stuff = torch.tensor([category.stuff for category in detections.categories], device="cpu")  # [C]
    if not stuff.any():
        return detections.boxes_xyxy
    height, width = detections.size
    whole = detections.boxes_xyxy.new_tensor([0, 0, width, height])
    return torch.where(stuff[detections.labels, None], whole, detections.boxes_xyxy)


def in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Yield results in order of their positions 0, 1, 2 ..., keeping early ones until they are due."""
    waiting: dict[int, T] = {}
    due = 0
    for position, result in results:
        waiting[position] = result
        while due in waiting:
            yield waiting.pop(due)
            due += 1
