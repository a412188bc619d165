"""Inference: sources in, detections out, whatever runs the model."""
