"""The range of pixel values of images with more than 8 bits (`data.depth`), determined once from the training images.

Cameras of 10 and 12 bits, thermal cameras and X-ray detectors store their values in 16 bits, of which they use little:
at full range their images are nearly black, or of one gray. The range is kept in `run.yaml` and in the weights, so that
training, evaluation, prediction and exported models scale all images in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from querybox.data import DetectionData
from querybox.data.deep import NARROW, DeepValues
from querybox.data.settings import Depth
from querybox.text import counted
from querybox.training.settings import RunSettings


def choose_depth(values: DeepValues) -> Depth | None:
    """Return the depth that suits the values of all training images.

    None, for the range that the files can have, if the values span at least a quarter of it. Otherwise the smallest
    number of bits that holds the largest value; but the range of the values if the smallest one is above a quarter of
    what these bits can hold, as in thermal images.
    """
    low, high = values.low, values.high
    if high - low >= NARROW * values.top or low == high:
        return None
    bits = int(high).bit_length()
    return bits if low <= NARROW * 2**bits else (low, high)


def with_depth(
    settings: RunSettings, training: DetectionData, deep: Sequence[DeepValues]
) -> tuple[RunSettings, str]:
    """Set `data.depth` unless it is set already.

    Args:
        settings: Resolved settings.
        training: The training images.
        deep: The values of those with more than 8 bits.

    Returns:
        The settings, and what was chosen and why in one line, empty if nothing was.
    """
    if settings.data.depth is not None or not deep:
        return settings, ""
    low = min(values.low for values in deep)
    high = max(values.high for values in deep)
    depth = choose_depth(DeepValues(low, high, max(values.top for values in deep)))
    if depth is None:
        return settings, ""
    data = settings.data.replace(depth=depth)
    assert data.pixel_range is not None
    black, white = data.pixel_range
    shown = depth if isinstance(depth, int) else f"[{black:g},{white:g}]"
    return settings.replace(data=data), (
        f"{training.source}: {counted(len(deep), 'image')} of more than 8 bits with values from {low:g} to {high:g}; "
        f"{black:g} to {white:g} become 0 to 255 (data.depth={shown})"
    )
