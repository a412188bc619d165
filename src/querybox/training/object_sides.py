"""The sizes of the objects of the training images, which the weights state for `tile="auto"`."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from querybox.data import DetectionData
from querybox.data.transforms import resized_shape
from querybox.object_sides import ObjectSides
from querybox.structures import Preprocessing


def with_object_sides(preprocessing: Preprocessing, training: DetectionData) -> Preprocessing:
    """Return the preprocessing with the median sides of the training objects as `object_sides`, None without any."""
    original, scales = [np.zeros(0)], [np.zeros(0)]
    for image in training.images:
        boxes = image.boxes_xyxy[~image.crowd]
        shape = resized_shape(
            image.height,
            image.width,
            preprocessing.short_side,
            preprocessing.long_side,
            preprocessing.resizing,
        )
        original.append(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)))
        scales.append(np.full(len(boxes), math.sqrt(math.prod(shape) / (image.height * image.width))))
    sides = np.concatenate(original)
    if not len(sides):
        return dataclasses.replace(preprocessing, object_sides=None)
    resized = sides * np.concatenate(scales)
    medians = ObjectSides(original=float(np.median(sides)), resized=float(np.median(resized)))
    return dataclasses.replace(preprocessing, object_sides=medians)
