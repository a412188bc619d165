"""Images in which it can be seen where a transform moves boxes."""

from __future__ import annotations

import torch

from querybox.data.transforms import Sample


def marked(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> Sample:
    """Return a black image whose boxes are white."""
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[:, y0:y1, x0:x1] = 255
    return Sample(pixels, torch.tensor(boxes).float().reshape(-1, 4), torch.arange(len(boxes)))
