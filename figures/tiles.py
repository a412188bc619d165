"""The figure of docs/guides/tiles.md: the detections in the tiles of one photo, and two ways to merge them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.ops import batched_nms

from figures.sheet import COLOURS, DASHES, frame, save, sheet, show
from figures.specimen import DINO_WEIGHTS, EXAMPLE, IMAGE
from querybox.boxes import to_cxcywh
from querybox.data.image import read_image
from querybox.data.tiling import Tiling
from querybox.detector import Detector
from querybox.inference.detections import Detections
from querybox.inference.merge import merge
from querybox.inference.options import Options
from querybox.inference.predict import detect_frames
from querybox.inference.sources import Frame, views
from querybox.pixels import as_pixels

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "tiles.png"
TILING = Tiling(400, 0.2)
THRESHOLD = 0.4
SHOWN_X, SHOWN_Y = (0.1, 0.7), (1.0, 0.4)
"""The part of the photo that is shown, in 0-1."""


def tiles() -> Figure:
    """Draw what each view finds, and what non-maximum suppression and querybox make of it."""
    pixels = as_pixels(read_image(EXAMPLE / "images" / IMAGE))
    height, width = pixels.shape[1:]
    windows = TILING.windows((height, width))
    frames = [replace(view, view=None) for view in views(Frame(source="", pixels=pixels), TILING)]
    detector = Detector.load(DINO_WEIGHTS).optimize()
    parts = list(detect_frames(detector, frames, Options(threshold=THRESHOLD)))
    offsets = [torch.tensor([window.left, window.top] * 2) for window in windows]
    boxes = torch.cat([part.boxes_xyxy + offset for part, offset in zip(parts, offsets, strict=True)])
    view = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    scores, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("scores", "labels"))
    kept = batched_nms(boxes, scores, labels, 0.5)
    merged: Detections = merge(parts, windows, (height, width))
    figure, grid = sheet(1.85, nrows=1, ncols=3)
    for axes, title, shown, colours in (
        (grid[0], "all views", boxes, view.tolist()),
        (grid[1], "NMS", boxes[kept], [0] * len(kept)),
        (grid[2], "querybox", merged.boxes_xyxy, [0] * len(merged)),
    ):
        show(axes, pixels, title)
        for left, top, across, down in windows[1:]:
            tile = torch.tensor([[left, top, left + across, top + down]]) / torch.tensor([width, height] * 2)
            frame(axes, to_cxcywh(tile)[0].tolist(), "black", dashes=DASHES[2], width=0.8)
        for box, colour in zip(
            to_cxcywh(shown / torch.tensor([width, height] * 2)).tolist(), colours, strict=True
        ):
            frame(axes, box, COLOURS[colour], width=1.2)
        axes.set_xlim(*SHOWN_X)
        axes.set_ylim(*SHOWN_Y)
    return figure


def main() -> None:
    """Write the figure."""
    save(tiles(), PICTURE, "examples/blood_cells/weights.safetensors")
