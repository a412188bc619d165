"""Training: settings in, a trained detector and everything about how it came about out."""

from querybox.training.run import TrainResult, train
from querybox.training.settings import RunSettings, TrainSettings

__all__ = ["RunSettings", "TrainResult", "TrainSettings", "train"]
