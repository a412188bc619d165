"""int8: weights and activations in 8 bits, their ranges taken from the user's own images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from querybox.data import DetectionData, read_pixels
from querybox.errors import DataError
from querybox.exporting.openvino import missing
from querybox.inference.predict import prepare
from querybox.inference.sources import Frame
from querybox.structures import Preprocessing

if TYPE_CHECKING:
    import openvino

IMAGES = 100
"""How many images calibrate, spread evenly over the data."""


def quantise(
    model: openvino.Model, exact: frozenset[str], data: DetectionData, preprocessing: Preprocessing
) -> openvino.Model:
    """Return the model in int8, but for what is sensitive and cheap.

    Normalisations, softmax and attention's own products stay in float by nature; so do the matrix products of `exact`
    and all that comes after them: the sums and products that make a box of a reference need more than 8 bits.

    Args:
        model: In float32, as `querybox.exporting.openvino.convert` made it.
        exact: Operations of the traced graph, by name, whose products stay in float.
        data: Images like those that the model will see; their boxes do not matter here.
        preprocessing: The detector's.

    Raises:
        DataError: The data hold no image.
        MissingExtraError: NNCF is not installed.
    """
    try:
        import nncf
    except ImportError:
        raise missing("int8") from None
    if not data.images:
        raise DataError(f"{data.source}: holds no image to calibrate int8 with")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # it tells of every operation that it leaves alone
    kept: set[str] = set()
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        sources = {port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()}
        if (name.partition("/")[0] in exact and name.endswith("MatMul")) or sources & kept:
            kept.add(name)
    return nncf.quantize(
        model,
        nncf.Dataset(list(samples(data, preprocessing))),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        ignored_scope=nncf.IgnoredScope(names=sorted(kept)),
        subset_size=min(len(data.images), IMAGES),
    )


def samples(data: DetectionData, preprocessing: Preprocessing) -> Iterator[dict[str, np.ndarray]]:
    """Yield the model's input for `IMAGES` images of the data, spread evenly."""
    count = len(data.images)
    chosen = np.linspace(0, count - 1, min(count, IMAGES)).round().astype(int)
    records = (data.images[place] for place in chosen)
    frames = (Frame(source=str(record.path), pixels=read_pixels(record)) for record in records)
    for each in prepare(frames, preprocessing):
        pixels = each.pixels[None].contiguous()
        yield {"pixels": pixels.numpy(), "sizes": np.array([pixels.shape[2:]], dtype=np.int64)}
