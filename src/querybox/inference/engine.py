"""What runs a model: the detector itself, its optimised copy, or an exported file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing


@runtime_checkable
class Engine(Protocol):
    """All that `predict` and `evaluate` ask of a model."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes by label, 0 ... C-1."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""

    @property
    def device(self) -> torch.device:
        """Where the input has to be."""

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        """Detect objects in a batch; of `layers`, the last is the answer and the only one that has to be there."""


@contextmanager
def evaluating(engine: Engine) -> Iterator[None]:
    """Switch a module to evaluation mode, and every part back to the mode it was in."""
    modules = engine.modules() if isinstance(engine, nn.Module) else ()
    training = [part for part in modules if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def accelerator() -> torch.device:
    """Return the device that detectors run on here."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")
