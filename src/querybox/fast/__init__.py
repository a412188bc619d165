"""Copies of detectors that compute the same faster, for inference and training."""
