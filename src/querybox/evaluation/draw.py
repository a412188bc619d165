"""Draw the objects and detections of an image, with the errors marked."""

from __future__ import annotations

import numpy as np
from PIL import Image

from querybox.data.records import ImageRecord
from querybox.evaluation.errors import ABBREVIATIONS, ImageErrors
from querybox.inference.detections import Detections
from querybox.inference.draw import draw_boxes


def draw_errors(
    image: Image.Image, record: ImageRecord, detections: Detections, errors: ImageErrors
) -> tuple[Image.Image, Image.Image]:
    """Return two copies of an image: one with its objects, one with its detections.

    Correct boxes have a thin outline. Errors have a thick, dashed one, labelled with the abbreviation of the error type
    (`ABBREVIATIONS`), the class and, for a detection, the score.

    Args:
        image: The image, in the orientation that the record's boxes refer to; it may be reduced.
        record: Its objects.
        detections: Its detections, with the labels of the record.
        errors: The errors of these detections, from `find_errors`.
    """
    false_negatives = {error.object: ABBREVIATIONS[error.error_type] for error in errors.false_negatives}
    false_positives = {error.detection: ABBREVIATIONS[error.error_type] for error in errors.false_positives}
    names = [detections.categories[label].name for label in record.labels.tolist()]
    object_captions = [
        f"{false_negatives[g]} {name}" if g in false_negatives else f"{name} (crowd)" * bool(record.crowd[g])
        for g, name in enumerate(names)
    ]
    scores = zip(detections.names, detections.scores.tolist(), strict=True)
    detection_captions = [
        f"{false_positives[n]} {name} {score:.2f}" if n in false_positives else ""
        for n, (name, score) in enumerate(scores)
    ]
    scale = np.array([image.width / record.width, image.height / record.height] * 2)
    objects, boxes = record.boxes_xyxy * scale, detections.boxes_xyxy.double().numpy() * scale
    labels = detections.labels.numpy()
    return (
        draw_boxes(image, objects, record.labels, object_captions, highlighted=false_negatives),
        draw_boxes(image, boxes, labels, detection_captions, highlighted=false_positives),
    )
