"""Evaluation: COCO metrics, confusion matrix and error types."""
