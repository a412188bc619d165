"""Quantisation to int8, with activation ranges calibrated on the user's images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from querybox.data import DetectionData, read_pixels
from querybox.errors import DataError, requires_extra
from querybox.exporting.card import Card
from querybox.exporting.engine import pad_to
from querybox.exporting.telemetry import without_telemetry, without_warnings
from querybox.inference.predict import prepare
from querybox.inference.sources import Frame

if TYPE_CHECKING:
    import openvino

CALIBRATION_IMAGES = 100
"""Maximum number of calibration images, evenly spaced over the dataset."""


def quantise(
    model: openvino.Model, float_nodes: frozenset[str], data: DetectionData, card: Card
) -> openvino.Model:
    """Return the model in int8, except for operations that are sensitive and cheap.

    NNCF keeps normalisation, softmax and the matrix products of attention in float. So do the matrix products of
    `float_nodes` and everything computed from them, because computing a box from a reference needs more than 8 bits.

    Args:
        model: The model in float32, see `querybox.exporting.openvino.convert`.
        float_nodes: Names of the nodes of the traced graph whose matrix products stay in float.
        data: Images representative of those that the model will be used on; their boxes are not used.
        card: The preprocessing and the size of the images.

    Raises:
        DataError: The dataset has no images.
        MissingExtraError: NNCF is not installed.
    """
    with requires_extra("openvino", "int8"), without_telemetry():
        import nncf
    if not data.images:
        raise DataError(f"{data.source}: has no images to calibrate int8 with")
    ignored: set[str] = set()
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        sources = {port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()}
        if (name.partition("/")[0] in float_nodes and name.endswith("MatMul")) or sources & ignored:
            ignored.add(name)
    with without_warnings("nncf"):  # it logs every operation that is not quantised
        return nncf.quantize(
            model,
            nncf.Dataset(list(calibration_inputs(data, card))),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(names=sorted(ignored)),
            subset_size=min(len(data.images), CALIBRATION_IMAGES),
        )


def calibration_inputs(data: DetectionData, card: Card) -> Iterator[dict[str, np.ndarray]]:
    """Yield the model's inputs for `CALIBRATION_IMAGES` images, evenly spaced over the dataset."""
    count = len(data.images)
    indices = np.linspace(0, count - 1, min(count, CALIBRATION_IMAGES)).round().astype(int)
    records = (data.images[index] for index in indices)
    frames = (
        Frame(source=str(record.path), pixels=read_pixels(record, pixel_range=card.preprocessing.pixel_range))
        for record in records
    )
    for each in prepare(frames, card.preprocessing):
        pixels, sizes = each.pixels[None], torch.tensor([each.pixels.shape[1:]])
        if card.size is not None:
            pixels = pad_to(pixels, sizes, card)
        yield {"pixels": pixels.contiguous().numpy(), "sizes": sizes.numpy()}
