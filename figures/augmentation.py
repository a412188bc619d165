"""The figure of docs/guides/augmentation.md: one training image after each kind of augmentation, with its boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from figures.sheet import COLOURS, DASHES, frame, save, sheet, show
from figures.specimen import EXAMPLE
from querybox.data import DataSettings, read_dataset, train_loader

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "augmentation.png"
KINDS: dict[str, dict[str, Any]] = {
    "as annotated": {},
    "photometric": {"photometric": 1.0},
    "zoom_out": {"zoom_out": 1.0},
    "iou_crop": {"iou_crop": 1.0},
    "mosaic": {"mosaic": 1.0},
    "mixup": {"mixup": 1.0},
}
"""Settings by title."""
SEED = 5


def augmentations() -> Figure:
    """Draw the same image after each kind of augmentation."""
    figure, grid = sheet(3.6, nrows=2, ncols=3)
    data = read_dataset(EXAMPLE, "train").only(range(1, 13))
    for axes, (title, settings) in zip(grid.flat, KINDS.items(), strict=True):
        plain = DataSettings(image_size=240, scales=(240,), horizontal_flip=0, crop=0, workers=0)
        batch = next(iter(train_loader(data, plain.replace(**settings), batch_size=2, seed=SEED)))
        height, width = batch.sizes[0].tolist()
        show(axes, batch.pixels[0, :, :height, :width], title)
        target = batch.targets[0]
        for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            frame(axes, box, COLOURS[label], dashes=DASHES[label])
    return figure


def main() -> None:
    """Write the figure."""
    save(augmentations(), PICTURE, "examples/blood_cells")
