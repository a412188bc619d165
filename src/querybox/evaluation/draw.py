"""Pictures of what an evaluation found in an image."""

from __future__ import annotations

from PIL import Image

from querybox.data.records import ImageRecord
from querybox.evaluation.errors import LETTERS, Mistakes
from querybox.inference.detections import Detections
from querybox.inference.draw import draw_boxes


def draw_mistakes(
    image: Image.Image, record: ImageRecord, detections: Detections, mistakes: Mistakes
) -> tuple[Image.Image, Image.Image]:
    """Return the image twice: with its objects, and with what was found.

    What is right has a thin frame. What is wrong has a thick, dashed one, the letters of `LETTERS` for the reason, its
    class and its score.

    Args:
        image: The image, turned as the boxes of the record are.
        record: Its objects.
        detections: What was found in it, with the labels of the record.
        mistakes: What is wrong with these detections.
    """
    misses = {miss.object: LETTERS[miss.reason] for miss in mistakes.misses}
    alarms = {alarm.detection: LETTERS[alarm.reason] for alarm in mistakes.false_alarms}
    names = [detections.categories[label].name for label in record.labels.tolist()]
    objects = [
        f"{misses[place]} {name}" if place in misses else f"{name} (crowd)" * bool(record.crowd[place])
        for place, name in enumerate(names)
    ]
    scores = zip(detections.names, detections.scores.tolist(), strict=True)
    found = [
        f"{alarms[place]} {name} {score:.2f}" if place in alarms else ""
        for place, (name, score) in enumerate(scores)
    ]
    boxes_xyxy, labels = detections.boxes_xyxy.double().numpy(), detections.labels.numpy()
    return (
        draw_boxes(image, record.boxes_xyxy, record.labels, objects, wrong=misses),
        draw_boxes(image, boxes_xyxy, labels, found, wrong=alarms),
    )
