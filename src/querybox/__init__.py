"""Object detection with DETR: object queries in, boxes out, no anchors, no non-maximum suppression.

    import querybox as qb

    detector = qb.load("model.safetensors")
    for detections in detector.predict(["a.jpg", "b.jpg"]):
        print(detections.names, detections.boxes_xyxy)

The names below are the public API. They are imported lazily, so that `import querybox` and the command line's
``--help`` do not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from querybox import models as models
    from querybox.checkpoints.convert import convert
    from querybox.data import read_dataset, validate
    from querybox.detector import Detector, load
    from querybox.diagnosis.diagnose import diagnose
    from querybox.errors import QueryboxError
    from querybox.evaluation.evaluate import evaluate
    from querybox.exporting import export
    from querybox.inference.detections import Detections
    from querybox.inference.draw import draw
    from querybox.inference.live import LiveStream
    from querybox.inference.predict import predict
    from querybox.losses.criterion import Criterion
    from querybox.losses.matcher import HungarianMatcher
    from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing, Target
    from querybox.training import RunSettings, train

__all__ = [
    "Category",
    "Criterion",
    "Detections",
    "Detector",
    "DetectorOutput",
    "HungarianMatcher",
    "ImageBatch",
    "LiveStream",
    "Predictions",
    "Preprocessing",
    "QueryboxError",
    "RunSettings",
    "Target",
    "convert",
    "diagnose",
    "draw",
    "evaluate",
    "export",
    "load",
    "models",
    "predict",
    "read_dataset",
    "train",
    "validate",
]
__version__ = version("querybox")

_MODULES = {
    "Category": "structures",
    "Criterion": "losses.criterion",
    "Detections": "inference.detections",
    "Detector": "detector",
    "DetectorOutput": "structures",
    "HungarianMatcher": "losses.matcher",
    "ImageBatch": "structures",
    "LiveStream": "inference.live",
    "Predictions": "structures",
    "Preprocessing": "structures",
    "QueryboxError": "errors",
    "RunSettings": "training",
    "Target": "structures",
    "convert": "checkpoints.convert",
    "diagnose": "diagnosis.diagnose",
    "draw": "inference.draw",
    "evaluate": "evaluation.evaluate",
    "export": "exporting",
    "load": "detector",
    "predict": "inference.predict",
    "read_dataset": "data",
    "train": "training",
    "validate": "data",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first access."""
    if name == "models":
        return import_module("querybox.models")
    if name not in _MODULES:
        raise AttributeError(f"module 'querybox' has no attribute '{name}'")
    value = getattr(import_module(f"querybox.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return [*__all__, "__version__"]
