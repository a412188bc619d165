"""The optimised copy of a detector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from querybox.errors import ConfigError
from querybox.fast.inference import compile_parts, for_inference
from querybox.inference.engine import Engine
from querybox.modules.detector import DetectionTransformer
from querybox.precision import DTYPES, Precision, dtype_of, resolve_precision
from querybox.structures import DetectorOutput, ImageBatch
from querybox.text import listed


class OptimizedModel:
    """A faster copy of a detector, for inference only; `querybox.inference.optimized.OptimizedDetector` adds `predict`.

    An `Engine` on the device of the detector. It can be pickled, and used by several threads at once.

    Attributes:
        model: The copy, whose modules have been replaced by faster ones.
        categories: The classes by label, 0 ... C-1.
        preprocessing: Resizing and normalisation of images.
        device: The device of the model and its inputs.
        dtype: The dtype of the computations.
        compiled: Whether the copy is compiled with `torch.compile`.
    """

    def __init__(
        self,
        detector: DetectionTransformer,
        *,
        precision: Precision = "float32",
        compile: bool = False,  # noqa: A002 - as in torch
    ) -> None:
        """Copy and optimise `detector`, in training or evaluation mode; see `querybox.Detector.optimize`.

        Raises:
            ConfigError: `precision` is unknown, or the parameters of the detector have no values.
        """
        if precision not in (expected := ("auto", *DTYPES)):
            raise ConfigError(f"optimize got precision={precision!r}; expected one of {listed(expected)}")
        if detector.device.type == "meta":
            raise ConfigError(
                "the parameters of the detector are on the meta device, which stores no values; load its weights first"
            )
        self.categories = detector.categories
        self.preprocessing = detector.preprocessing
        self.device = detector.device
        self.dtype = dtype_of(resolve_precision(precision, detector.device))
        self.compiled = compile
        self.model = for_inference(detector, self.dtype, compiled=compile)
        if compile:
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
        with torch.autocast(self.device.type, enabled=False):  # an outer one would change the precision
            output: DetectorOutput = self.model(replace(batch, images=images))
        return output


def as_optimized(engine: Engine) -> Engine:
    """Return the optimised copy of a detector; return any other engine unchanged."""
    return OptimizedModel(engine) if isinstance(engine, DetectionTransformer) else engine
