"""Videos of coloured squares, and an engine that detects them, for tests of tracking and of live streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from querybox.inference.predictor import Predictor
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing

HEIGHT, WIDTH, SIDE = 48, 160, 20
BACKGROUND = 20
Picture = UInt8[np.ndarray, "h w 3"]


class SquareEngine(Predictor):
    """Detects the red and the blue square of an image; the score is the brightness of the square."""

    categories = (Category(id=1, name="red"), Category(id=2, name="blue"))
    preprocessing = Preprocessing(short_side=HEIGHT, long_side=WIDTH)
    device = torch.device("cpu")

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        """Return a query for each colour."""
        mean, std = (torch.tensor(values)[:, None, None] for values in self.statistics())
        (pixels,) = batch.images * std + mean  # [3, h, w]
        height, width = pixels.shape[1:]
        found = [self.find(pixels[channel] - pixels[2 - channel]) for channel in (0, 2)]
        scores = torch.tensor([score for score, _ in found])
        logits = torch.full((1, 2, 2), -20.0)
        logits[0, [0, 1], [0, 1]] = scores.logit(1e-6)
        boxes = torch.tensor([box for _, box in found]) / torch.tensor([width, height, width, height])
        return DetectorOutput(layers=(Predictions(logits=logits, boxes=boxes[None], no_object=False),))

    def statistics(self) -> tuple[Any, Any]:
        """Return the mean and the standard deviation of each channel."""
        return self.preprocessing.mean, self.preprocessing.std

    @staticmethod
    def find(difference: torch.Tensor) -> tuple[float, tuple[float, ...]]:
        """Return the score and the cxcywh in pixels of what is brighter in one channel."""
        rows, columns = torch.nonzero(difference > 30, as_tuple=True)
        if len(rows) < 20:
            return 0.0, (1.0, 1.0, 1.0, 1.0)
        left, top = int(columns.min()), int(rows.min())
        right, bottom = int(columns.max()) + 1, int(rows.max()) + 1
        score = float(difference[rows, columns].median()) / 255
        return min(score, 0.99), ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def picture(red: int | None, blue: int | None, *, brightness: int = 255) -> Picture:
    """Return an image with a square in each colour, whose left edges are given; the red one is on top.

    Args:
        red: Left edge of the red square; None for no such square.
        blue: Left edge of the blue square.
        brightness: Of the red square, 0-255.
    """
    pixels = np.full((HEIGHT, WIDTH, 3), BACKGROUND, dtype=np.uint8)
    for left, channel, top in ((blue, 2, 16), (red, 0, 12)):
        if left is not None:
            pixels[top : top + SIDE, left : left + SIDE] = BACKGROUND
            pixels[top : top + SIDE, left : left + SIDE, channel] = 255 if channel else brightness
    return pixels


def crossing(frames: int = 40) -> Iterator[Picture]:
    """Yield the frames of two squares that pass each other; for some frames the blue one is behind the red one."""
    for number in range(frames):
        way = round(number * (WIDTH - SIDE) / (frames - 1))
        yield picture(way, WIDTH - SIDE - way)


def write(
    path: Path,
    pictures: Iterable[Picture],
    *,
    rate: int | Fraction = 30,
    codec: str = "rawvideo",
    times: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 1000),
) -> Path:
    """Write a video, by default an uncompressed one.

    Args:
        path: The file.
        pictures: The frames.
        rate: Frames a second that the header states, if its format has them.
        codec: The codec.
        times: Time of each frame; None for even ones.
        unit: Unit of `times` in seconds.
    """
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        tick = 1 / Fraction(rate) if times is None else unit
        stream.codec_context.time_base = tick
        for pixels, time in zip(pictures, count() if times is None else times, strict=times is not None):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
