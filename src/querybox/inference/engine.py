"""The interface of everything that runs a model: a detector, its optimised copy, an exported model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing


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


def default_device() -> torch.device:
    """Return the default device: the current accelerator, or the CPU if there is none."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")
