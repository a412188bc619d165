"""Evaluation: COCO's numbers, the confusion matrix, and the errors by kind."""
