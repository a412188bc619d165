"""Prediction: pictures from anywhere in, detections out, in order and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from querybox.data.transforms import resize
from querybox.errors import ConfigError, ImageError
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine, evaluating
from querybox.inference.postprocess import postprocess
from querybox.inference.sources import Frame, Source, find_sources, read_frames
from querybox.structures import ImageBatch, Predictions, Preprocessing


class Predictor:
    """Whatever runs a model and can be asked to predict: a detector, its optimised copy, an exported model."""

    def predict(
        self: Engine,
        sources: Source | Sequence[Source],
        *,
        threshold: float = 0.5,
        top_k: int = 100,
        nms: float | None = None,
        batch_size: int = 8,
    ) -> list[Detections]:
        """Detect objects in files, folders, videos or pixels; see `querybox.inference.predict.predict`."""
        return list(predict(self, sources, threshold=threshold, top_k=top_k, nms=nms, batch_size=batch_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A frame made ready for the model, and what it takes to answer for it."""

    position: int
    """Place in the order of the sources."""
    source: str
    size: tuple[int, int]
    """(height, width) of the original image in pixels."""
    pixels: UInt8[Tensor, "3 h w"]
    """Resized, RGB."""


def predict(
    engine: Engine,
    sources: Source | Sequence[Source],
    *,
    threshold: float = 0.5,
    top_k: int = 100,
    nms: float | None = None,
    batch_size: int = 8,
    broken: Callable[[ImageError], object] | None = None,
) -> Iterator[Detections]:
    """Find the objects in images and videos.

    No result depends on what else is predicted. A CPU answers one image at a time (see `together`); elsewhere only
    images of equal size after resizing share a batch, so none is padded. At most ``8 * batch_size`` resized images wait
    for others of their size, so folders and videos may be of any length.

    Args:
        engine: The model: a `Detector`, whose mode (training or evaluation) is left as it was found, or whatever else
            runs one.
        sources: Files, folders, globs, videos or pixels; see `querybox.inference.sources.find_sources`.
        threshold: Leave out detections that score less (0-1).
        top_k: Most detections per image.
        nms: Leave out detections that overlap a better one of their class by more than this IoU (0-1).
        batch_size: Most images in one forward pass, on an accelerator.
        broken: Is told of each file that cannot be read, and those after it are predicted on; None: that is an error.

    Returns:
        The detections of each image, or of each frame of a video, in the order of the sources.

    Raises:
        ConfigError: An argument is out of its range.
        DataError: A source does not exist or holds no image.
        ImageError: An image cannot be read, and nobody is to be told of it; raised when its turn comes.
    """
    require("threshold", threshold, 0, 1)
    require("nms", 0 if nms is None else nms, 0, 1)
    frames = read_frames(find_sources(sources), broken)
    answers = detect_frames(engine, frames, top_k=top_k, batch_size=batch_size)
    best = (found.above(threshold) for found in answers)
    return best if nms is None else (found.nms(nms) for found in best)


def detect_frames(
    engine: Engine, frames: Iterable[Frame], *, top_k: int, batch_size: int
) -> Iterator[Detections]:
    """Find the objects of each frame, in order, whatever they score: the heart of `predict` and of `evaluate`.

    Raises:
        ConfigError: An argument is out of its range.
    """
    require("top_k", top_k, 1)
    require("batch_size", batch_size, 1)
    inputs = prepare(frames, engine.preprocessing)
    return in_order(detect_all(engine, equal_shapes(inputs, together(engine, batch_size)), top_k))


def together(engine: Engine, batch_size: int) -> int:
    """Return how many images share a forward pass, of `batch_size` at most: on a CPU one.

    There a batch is no faster, its maps being too large for the caches; and sums are rounded otherwise in batches of
    another size, which is enough for DINO to rank two proposals the other way round.
    """
    return 1 if engine.device.type == "cpu" else batch_size


def require(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless `value` is within `low` to `high`, both included."""
    if not low <= value <= high:
        raise ConfigError(
            f"predict got {name}={value}; expected {low} {'or more' if high == math.inf else f'to {high}'}"
        )


def prepare(frames: Iterable[Frame], preprocessing: Preprocessing) -> Iterator[Input]:
    """Resize one frame after another."""
    for position, frame in enumerate(frames):
        height, width = frame.pixels.shape[1:]
        resized = resize(
            frame.pixels, preprocessing.short_side, preprocessing.long_side, preprocessing.resizing
        )
        yield Input(position=position, source=frame.source, size=(height, width), pixels=resized)


def equal_shapes(inputs: Iterable[Input], batch_size: int) -> Iterator[list[Input]]:
    """Group inputs of equal shape; a group goes when it is full, or when its first input is long overdue."""
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


def detect_all(
    engine: Engine, batches: Iterable[list[Input]], top_k: int
) -> Iterator[tuple[int, Detections]]:
    """Answer batch after batch, each answer with its place in the order of the sources."""
    for batch in batches:
        yield from zip((each.position for each in batch), detect(engine, batch, top_k), strict=True)


def detect(engine: Engine, batch: Sequence[Input], top_k: int) -> list[Detections]:
    """Find the objects in inputs of one shape."""
    with evaluating(engine), torch.inference_mode():
        return as_detections(engine, answer(engine, batch), batch, top_k)


def answer(engine: Engine, batch: Sequence[Input]) -> Predictions:
    """Run the model on inputs of one shape."""
    pixels = torch.stack([each.pixels for each in batch])  # [B, 3, H, W]
    sizes = torch.tensor([pixels.shape[2:]] * len(batch))  # [B, 2]
    images = ImageBatch.from_pixels(
        pixels.to(engine.device), sizes.to(engine.device), engine.preprocessing, padded=False
    )
    return engine(images).layers[-1]


def as_detections(
    engine: Engine, answers: Predictions, batch: Sequence[Input], top_k: int
) -> list[Detections]:
    """Turn the last layer's answers for some inputs into detections in pixels of the original images."""
    original_sizes = torch.tensor([each.size for each in batch])  # [B, 2]
    found = postprocess(
        answers,
        original_sizes.to(engine.device),
        top_k,
        clip_boxes=engine.preprocessing.clip_boxes,
    )
    scores, labels, boxes_xyxy = (tensor.cpu() for tensor in found)
    return [
        Detections(
            boxes_xyxy=boxes_xyxy[row],
            scores=scores[row],
            labels=labels[row],
            categories=engine.categories,
            size=each.size,
            source=each.source,
        )
        for row, each in enumerate(batch)
    ]


def in_order(answers: Iterable[tuple[int, Detections]]) -> Iterator[Detections]:
    """Hand answers on by their place, 0, 1, 2 ..., holding back those that come early."""
    early: dict[int, Detections] = {}
    turn = 0
    for position, found in answers:
        early[position] = found
        while turn in early:
            yield early.pop(turn)
            turn += 1
