"""Images of rectangles, and an engine that finds them."""

from __future__ import annotations

import torch
from torch import Tensor

from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing

TILE = 100
CATEGORIES = (Category(id=1, name="cell"), Category(id=2, name="dust"))
Box = tuple[int, int, int, int]


class Oracle:
    """An engine that finds each object of `scene`, which are told apart by their colours.

    Small objects score higher: what a tile shows of an object scores higher than the object, which misleads
    non-maximum suppression.
    """

    categories = CATEGORIES
    device = torch.device("cpu")
    preprocessing = Preprocessing(
        short_side=TILE, long_side=4 * TILE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )

    def __init__(self, smallest: int = 1) -> None:
        self.smallest = smallest
        """Number of pixels of the smallest object that is found."""

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        logits = torch.full((len(batch.images), 20, 2), -20.0)
        boxes = torch.full((len(batch.images), 20, 4), 0.5)
        for row, (red, green, _) in enumerate(batch.images):
            height, width = red.shape
            numbers = torch.where(red >= 100, (green / red.clamp(min=1) * 20).round(), 0)  # half covered
            for number in set(numbers.unique().int().tolist()) - {0}:
                y, x = (numbers == number).nonzero().T
                if len(x) < self.smallest:
                    continue
                low, high = torch.stack([x.min(), y.min()]), torch.stack([x.max(), y.max()]) + 1
                corners = torch.cat([low + high, 2 * (high - low)]) / 2
                boxes[row, number - 1] = corners / torch.tensor([width, height] * 2)
                logits[row, number - 1, 0] = 4 - len(x) / (height * width)
        return DetectorOutput(layers=(Predictions(logits=logits, boxes=boxes, no_object=False),))


def scene(size: tuple[int, int], boxes: list[Box]) -> Tensor:
    """Return an image of rectangles, at most 20."""
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes, 1):
        pixels[0, y0:y1, x0:x1], pixels[1, y0:y1, x0:x1] = 200, 10 * number
    return pixels
