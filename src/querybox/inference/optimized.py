"""The optimised copy of a detector, with the method `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from querybox.errors import CheckpointError
from querybox.inference.optimized_model import OptimizedModel
from querybox.inference.predictor import Predictor


class OptimizedDetector(OptimizedModel, Predictor):
    """An `OptimizedModel` with `predict`; see `Detector.optimize`.

    It can be neither trained nor saved; do this with the original detector and optimise it again.
    """

    def save(self, path: str | Path, **_: object) -> NoReturn:
        """Raise an error, because fused weights can be neither trained nor loaded.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{path}: an optimised copy cannot be saved, because its weights are fused; "
            "save the original detector"
        )
