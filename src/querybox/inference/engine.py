"""The interface of everything that runs a model: a detector, its optimised copy, an exported model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import nn

from querybox.errors import ImageError
from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing

if TYPE_CHECKING:
    from querybox.data.tiling import Tile
    from querybox.inference.detections import Detections
    from querybox.inference.sources import Source
    from querybox.inference.trackers import TrackerName


@runtime_checkable
class Engine(Protocol):
    """The interface that `predict` and `evaluate` require of a model."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes by label, 0 ... C-1."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are resized and normalised for the model."""

    @property
    def device(self) -> torch.device:
        """The device of the input."""

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        """Detect objects in a batch. Only the last of `DetectorOutput.layers` is required."""


class Predictor:
    """Mixin that adds `predict` to an `Engine`: a detector, its optimised copy, an exported model."""

    def predict(
        self: Engine,
        sources: Source | Sequence[Source],
        *,
        threshold: float = 0.5,
        top_k: int = 100,
        nms: float | None = None,
        tile: Tile = None,
        overlap: float = 0.2,
        track: TrackerName | None = None,
        batch_size: int = 8,
        on_error: Callable[[ImageError], object] | None = None,
    ) -> list[Detections]:
        """Detect objects in files, folders, videos or images in memory.

        Arguments and errors are those of `querybox.predict`, which yields the detections one by one.
        """
        from querybox.inference.predict import predict  # imports what reads images and videos

        detections = predict(
            self,
            sources,
            threshold=threshold,
            top_k=top_k,
            nms=nms,
            tile=tile,
            overlap=overlap,
            track=track,
            batch_size=batch_size,
            on_error=on_error,
        )
        return list(detections)


@contextmanager
def evaluating(engine: Engine) -> Iterator[None]:
    """Context manager that switches a module to evaluation mode and restores the mode of every submodule on exit."""
    modules = engine.modules() if isinstance(engine, nn.Module) else ()
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def accelerator() -> torch.device:
    """Return the default device: the current accelerator, or the CPU if there is none."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")
