"""The optimised copy of a detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from querybox.errors import CheckpointError, ConfigError
from querybox.fast.inference import compile_parts, for_inference
from querybox.inference.engine import Engine, Predictor
from querybox.modules.detector import DetectionTransformer
from querybox.precision import DTYPES, Precision, dtype_of, resolve_precision
from querybox.structures import DetectorOutput, ImageBatch
from querybox.text import listed


def optimize(
    detector: DetectionTransformer,
    *,
    precision: Precision = "float32",
    compile: bool = False,  # noqa: A002 - as in torch
) -> OptimizedDetector:
    """Return a faster copy of `detector` with the same predictions; see `Detector.optimize`."""
    if precision not in (expected := ("auto", *DTYPES)):
        raise ConfigError(f"optimize got precision={precision!r}; expected one of {listed(expected)}")
    if detector.device.type == "meta":
        raise ConfigError(
            "the parameters of the detector are on the meta device, which stores no values; load its weights first"
        )
    dtype = dtype_of(resolve_precision(precision, detector.device))
    return OptimizedDetector(detector, dtype=dtype, compiled=compile)


def fastest(engine: Engine) -> Engine:
    """Return the optimised copy of a detector; return any other engine unchanged."""
    return optimize(engine) if isinstance(engine, DetectionTransformer) else engine


class OptimizedDetector(Predictor):
    """A detector for inference only: an `Engine` with a copy of the weights, on the same device.

    It cannot be trained, moved or saved; do this with the original detector and optimise it again. It can be
    pickled, and used by several threads at once.

    Attributes:
        model: The copy, whose modules have been replaced by faster ones.
        categories: The classes by label, 0 ... C-1.
        preprocessing: Resizing and normalisation of images.
        device: The device of the model and its inputs.
        dtype: The dtype of the computations.
        compiled: Whether the copy is compiled with `torch.compile`.
    """

    def __init__(self, detector: DetectionTransformer, *, dtype: torch.dtype, compiled: bool) -> None:
        """Copy and optimise `detector`, in training or evaluation mode; see `Detector.optimize`."""
        self.categories = detector.categories
        self.preprocessing = detector.preprocessing
        self.device = detector.device
        self.dtype = dtype
        self.compiled = compiled
        self.model = for_inference(detector, dtype, compiled=compiled)
        if compiled:
            compile_parts(self.model)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile again after unpickling, because compiled code is not pickled."""
        vars(self).update(state)
        if self.compiled:
            compile_parts(self.model)

    @torch.inference_mode()
    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        """Return the predictions for a batch, of the last decoder layer only."""
        images = batch.images.to(self.dtype, memory_format=torch.channels_last)
        output: DetectorOutput = self.model(replace(batch, images=images))
        return output

    def save(self, path: str | Path, **_: object) -> NoReturn:
        """Raise an error, because fused weights can be neither trained nor loaded.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{path}: an optimised copy cannot be saved, because its weights are fused; "
            "save the original detector"
        )
