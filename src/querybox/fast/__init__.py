"""Copies of detectors that compute the same faster, for inference and training."""

from querybox.fast.inference import OptimizedDetector, fastest, optimize

__all__ = ["OptimizedDetector", "fastest", "optimize"]
