"""Training of detectors."""

from querybox.training.run import TrainResult, train
from querybox.training.settings import RunSettings, TrainSettings

__all__ = ["RunSettings", "TrainResult", "TrainSettings", "train"]
