"""The figure of docs/guides/scale.md: the parts of a collection, and the processes that predict them."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from figures.diagram import arrow, box
from figures.sheet import COLOURS, save, sheet

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "collection.png"
PARTS = ("000.tar", "001.tar", "002.tar", "003.tar")


def collection() -> Figure:
    """Draw four parts that two processes predict; one process is killed, and its part is predicted anew."""
    figure, axes = sheet(2.3)
    axes.set(xlim=(0, 10), ylim=(0, 4.4))
    axes.axis("off")
    for x, title in ((1.2, "parts"), (5, "processes, with the model"), (8.7, "output folder")):
        axes.text(x, 4.2, title, ha="center", va="center")
    heights = (3.4, 2.4, 1.4, 0.4)
    for height, name in zip(heights, PARTS, strict=True):
        box(axes, (1.2, height), name, 1.9)
    for height, name, colour in (
        (3.1, "process 1", 0),
        (1.9, "process 2, killed", 1),
        (0.7, "its replacement", 2),
    ):
        box(axes, (5, height), name, 2.7, COLOURS[colour])
    for part, process, colour in ((0, 3.1, 0), (1, 1.9, 1), (2, 3.1, 0), (1, 0.7, 2), (3, 0.7, 2)):
        killed = colour == 1
        arrow(axes, (2.2, heights[part]), (3.55, process), COLOURS[colour], dashed=killed)
        if not killed:
            arrow(axes, (6.45, process), (7.3, heights[part]), COLOURS[colour])
    for number, height in enumerate(heights):
        box(axes, (8.7, height), f"part-...{number}.parquet", 2.5)
    return figure


def main() -> None:
    """Write the figure."""
    save(collection(), PICTURE, "nothing but its script")
