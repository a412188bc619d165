"""Inference: image sources, prediction, and writing of detections."""
