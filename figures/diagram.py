"""Boxes and arrows, for figures of how things follow from each other."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from figures.sheet import CARD, INK, sheet

Point = tuple[float, float]
WIDTH = 10.0
"""Width of all diagrams, in their coordinates."""
UNIT = 0.5
"""Inches of the height of a diagram for each of its coordinates."""


def diagram(height: float) -> tuple[Figure, Axes]:
    """Return a figure without axes, whose coordinates are 0-10 and 0-`height`."""
    figure, axes = sheet(height * UNIT)
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    centre: Point,
    text: str,
    width: float,
    colour: str = INK,
    height: float = 0.66,
    size: float = 9,
) -> None:
    """Draw a box with a text of this size in points."""
    x, y = centre
    style = "round,pad=0,rounding_size=0.15"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, height, style, facecolor=CARD, edgecolor=colour, linewidth=1.4)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=size, linespacing=1.25)


def arrow(axes: Axes, start: Point, end: Point, colour: str = INK, *, dashed: bool = False) -> None:
    """Draw an arrow."""
    style = {"arrowstyle": "->", "color": colour, "linewidth": 1.3, "linestyle": "--" if dashed else "-"}
    axes.annotate("", end, start, arrowprops=style)


def label(axes: Axes, place: Point, text: str, *, size: float = 9, **how: Any) -> None:
    """Write a text."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "linespacing": 1.25}
    axes.text(*place, text, **{**style, **how})
