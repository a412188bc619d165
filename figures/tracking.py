"""The figure of docs/guides/video.md: three frames of a video, in which every object has its number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure

from figures.sheet import COLOURS, frame, save, sheet, show
from figures.specimen import DINO_WEIGHTS, EXAMPLE, IMAGE
from querybox.boxes import to_cxcywh
from querybox.data.image import read_image
from querybox.detector import Detector
from querybox.inference.predict import predict
from querybox.inference.sources import read_video

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "tracking.png"
SIDE, STEP, FRAMES = 400, 20, 11
"""Side of what the camera sees in pixels, how far it moves from frame to frame, and the number of frames."""
SHOWN = (1, 5, 10)
"""Frames in the figure."""


def tracking() -> Figure:
    """Track blood cells in a video, for which a camera moves over a photo, and draw three frames."""
    with TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "pan.mkv")
        detector = Detector.load(DINO_WEIGHTS)
        found = list(predict(detector, video, track="bytetrack", threshold=0.4, nms=0.7))
        frames = [each.pixels for each in read_video(video)]
    figure, grid = sheet(2.25, nrows=1, ncols=len(SHOWN))
    for axes, number in zip(grid, SHOWN, strict=True):
        show(axes, frames[number], f"frame {number}")
        boxes = to_cxcywh(found[number].boxes_xyxy / torch.tensor(SIDE))
        for box, track in zip(boxes.tolist(), found[number].tracks(), strict=True):
            frame(axes, box, COLOURS[track % len(COLOURS)], label=str(track) if track else "")
    return figure


def write_video(path: Path) -> Path:
    """Write the video of a camera that moves over the photo from left to right."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for pixels in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    return path


def pictures() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield what the camera sees."""
    photo = np.asarray(read_image(EXAMPLE / "images" / IMAGE))
    for number in range(FRAMES):
        yield np.ascontiguousarray(photo[40 : 40 + SIDE, number * STEP : number * STEP + SIDE])


def main() -> None:
    """Write the figure."""
    save(tracking(), PICTURE, "examples/blood_cells/weights.safetensors")
