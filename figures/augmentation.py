"""The figures of docs/guides/augmentation.md: training images after each kind of augmentation, with their boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from figures.sheet import COLOURS, DASHES, frame, save, sheet, show
from figures.specimen import EXAMPLE
from querybox.data import DataSettings, read_dataset, train_loader

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PICTURE = IMAGES / "augmentation.png"
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


def pasted() -> Figure:
    """Draw three images into which nuclei of other images have been pasted, with their masks."""
    figure, grid = sheet(1.8, nrows=1, ncols=3)
    data = read_dataset(EXAMPLE / "nuclei", "train").only(range(1, 25))
    settings = DataSettings(
        image_size=240, scales=(240,), horizontal_flip=0, crop=0, workers=0, copy_paste=1.0
    )
    batch = next(iter(train_loader(data, settings, batch_size=3, seed=SEED, masks=True)))
    for axes, pixels, size, target in zip(
        grid.flat, batch.pixels, batch.sizes.tolist(), batch.targets, strict=True
    ):
        height, width = size
        show(axes, pixels[:, :height, :width], "copy_paste")
        assert target.masks is not None
        for box, mask in zip(target.boxes.tolist(), target.masks, strict=True):
            frame(axes, box, COLOURS[1], dashes=DASHES[1])
            axes.contour(mask, levels=[0.5], colors=COLOURS[1], linewidths=0.8, extent=(0, 1, 0, 1))
    return figure


def main() -> None:
    """Write the figures."""
    save(augmentations(), PICTURE, "examples/blood_cells")
    save(pasted(), IMAGES / "copy_paste.png", "examples/blood_cells/nuclei")
