"""Brushes of Label Studio: run lengths of the values of an RGBA image, packed by the JavaScript library rle-pack.

A bit stream: the number of values (32 bits), the bits of a value less one (5), and four numbers of bits less one (4
each) in which lengths may be written. Blocks follow: whether a value is repeated (1), which of the four (2), the length
less one, and the repeated value, or as many values as the length says. The alpha channel of the image is the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from querybox.data.image import MAX_PIXELS
from querybox.errors import DataError
from querybox.masks import Rle

_CHANNELS = 4


class _Bits:
    """Reads numbers from bytes, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def read(self, bits: int) -> int:
        """Return the number in the next bits.

        Raises:
            DataError: There are fewer bits.
        """
        start, self.position = self.position, self.position + bits
        if self.position > 8 * len(self.content):
            raise DataError("the run lengths of a brush end too early")
        part = int.from_bytes(self.content[start // 8 : (self.position + 7) // 8])
        return part >> -self.position % 8 & (1 << bits) - 1


def read_brush(content: Sequence[int], size: tuple[int, int]) -> Rle:
    """Return the mask of a brush.

    Args:
        content: The bytes in the file, 0-255.
        size: (height, width) of the image.

    Raises:
        DataError: The bytes are malformed, or those of an image of another size.
    """
    height, width = size
    try:
        bits = _Bits(bytes(content))
    except (ValueError, TypeError):
        raise DataError("the run lengths of a brush are not bytes; expected numbers in 0-255") from None
    total = bits.read(32)
    if total != _CHANNELS * height * width or height * width > MAX_PIXELS:
        raise DataError(
            f"a brush has {total} values; expected {_CHANNELS} for each pixel of {height}x{width} (height x width), at "
            f"most {MAX_PIXELS:,} pixels"
        )
    value_bits, length_bits = bits.read(5) + 1, [bits.read(4) + 1 for _ in range(4)]
    pixels, inside = [], []
    position = 0
    while position < total:
        is_repeated, which = bits.read(1), bits.read(2)
        count = bits.read(length_bits[which]) + 1
        for step in [count] if is_repeated else [1] * count:
            value = bits.read(value_bits)
            # Of every four values, the last one is alpha.
            pixels.append((position + step) // _CHANNELS - position // _CHANNELS)
            inside.append(value > 0)
            position += step
    if position > total:
        raise DataError(f"the run lengths of a brush add up to {position} values; expected {total}")
    rows = np.repeat(np.array(inside), np.array(pixels)).reshape(height, width)
    return Rle.of(rows)
