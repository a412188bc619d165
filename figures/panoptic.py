"""The figure of docs/guides/masks.md: masks that overlap, and the segments that become of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import median_filter

from figures.sheet import COLOURS, DASHES, on_unit, save, sheet, show, write
from figures.specimen import EXAMPLE, IMAGE
from querybox.data import ImageRecord, read_dataset, read_image
from querybox.inference.detections import Detections
from querybox.inference.draw import PALETTE
from querybox.inference.panoptic import PanopticSegmentation
from querybox.masks import Rle, rasterised
from querybox.pixels import as_pixels
from querybox.structures import Category

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "panoptic.png"
CATEGORIES = (
    Category(id=1, name="nucleus"),
    Category(id=2, name="red cell"),
    Category(id=3, name="plasma", stuff=True),
)
PLASMA = 188
"""Minimum brightness of the plasma in the green channel, 0-255, in which cells are dark."""
SHIFT = 10
"""Distance in pixels between two masks of one cell, of which the lower-scoring one is dropped."""
VOID = (60, 60, 60)


def panoptic() -> Figure:
    """Draw the outlines of masks, and the segments that they become."""
    photo = read_image(EXAMPLE / "images" / IMAGE)
    found = detections()
    figure, (left, right) = sheet(2.45, nrows=1, ncols=2)
    show(left, as_pixels(photo), "masks", grey=True)
    draw_outlines(left, found)
    draw_segments(right, np.asarray(photo), found.panoptic())
    return figure


def detections() -> Detections:
    """Return masks for a photo, by score: a nucleus, a red cell in each box, one of them once more, and the plasma."""
    photo = np.asarray(read_image(EXAMPLE / "images" / IMAGE))
    size = photo.shape[:2]
    cells, nuclei = record(EXAMPLE), record(EXAMPLE / "nuclei")
    assert nuclei.masks is not None
    assert nuclei.masks[0] is not None
    boxes = cells.boxes_xyxy[cells.labels == 0]
    plasma = median_filter(photo[..., 1], 11) >= PLASMA
    ellipses = [ellipse(box, size) for box in boxes]
    again = ellipse(boxes[0] + SHIFT, size)
    masks = [rasterised(nuclei.masks[0], size), *map(Rle.of, [*ellipses, again, plasma])]
    return Detections(
        boxes_xyxy=torch.tensor([mask.box_xyxy for mask in masks]),
        scores=torch.linspace(0.95, 0.5, len(masks)),
        labels=torch.tensor([0, *[1] * (len(ellipses) + 1), 2]),
        categories=CATEGORIES,
        size=size,
        masks=tuple(masks),
    )


def record(folder: Path) -> ImageRecord:
    """Return the objects of the photo in a dataset."""
    return next(image for image in read_dataset(folder, "test").images if image.path.name == IMAGE)


def ellipse(box_xyxy: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the ellipse in a box."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    left, top, right, bottom = box_xyxy
    across, down = (2 * columns - left - right) / (right - left), (2 * rows - top - bottom) / (bottom - top)
    return across**2 + down**2 < 1


def draw_outlines(axes: Axes, found: Detections) -> None:
    """Draw the outlines of masks; a dotted one belongs to the mask that is dropped, the one before the last."""
    assert found.masks is not None
    for index, (mask, label) in enumerate(zip(found.masks, found.labels.tolist(), strict=True)):
        axes.contour(
            mask.mask(),
            levels=[0.5],
            colors=COLOURS[label],
            linestyles=[DASHES[2] if index == len(found) - 2 else "-"],
            linewidths=1.4 if label < 2 else 0.7,
            extent=(0, 1, 0, 1),
        )


def draw_segments(axes: Axes, photo: UInt8[np.ndarray, "H W 3"], segments: PanopticSegmentation) -> None:
    """Colour the segments, and number those of things."""
    count = len(segments.labels)
    colours = np.array([VOID, *(PALETTE[index % len(PALETTE)] for index in range(count))])
    opacity = np.where(segments.numbers == 0, 1.0, 0.6)[..., None]
    on_unit(axes, (opacity * colours[segments.numbers] + (1 - opacity) * photo).astype(np.uint8), "segments")
    for number, x, y in centres(segments):
        write(axes, x, y, str(number), ha="center", va="center")


def centres(segments: PanopticSegmentation) -> Iterator[tuple[int, float, float]]:
    """Yield the number and the centre of each segment of a thing, in 0-1 of the image."""
    height, width = segments.numbers.shape
    for number, label in enumerate(segments.labels.tolist(), start=1):
        rows, columns = np.nonzero(segments.numbers == number)
        if not segments.categories[label].stuff:
            yield number, columns.mean() / width, rows.mean() / height


def main() -> None:
    """Write the figure."""
    save(panoptic(), PICTURE, "examples/blood_cells")
