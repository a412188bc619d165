"""Results as plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.goals import spread
from benchmarks.measure import RowResult
from benchmarks.report import number

OURS, THEIRS = "#1f77b4", "#9a9a9a"
COLUMNS = 2
DPI = 90


def draw_rows(results: Sequence[RowResult], path: Path) -> None:
    """Draw one panel per row, with a bar and quartiles for each side."""
    rows = [result for result in results if result.x is None and any(side.samples for side in result.sides)]
    if not rows:
        return
    heights = [max(len(row.sides) for row in rows[at : at + COLUMNS]) for at in range(0, len(rows), COLUMNS)]
    figure = Figure(
        figsize=(14, sum(0.3 * height + 0.9 for height in heights)), dpi=DPI, layout="constrained"
    )
    grid = figure.subplots(
        len(heights), COLUMNS, squeeze=False, height_ratios=[height + 2 for height in heights]
    )
    for axes, row in zip(grid.flat, rows, strict=False):
        draw_bars(axes, row)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    save(figure, path)


def draw_bars(axes: Axes, row: RowResult) -> None:
    """Draw the measured sides of one row, the first on top."""
    sides = [side for side in row.sides if side.samples]
    quartiles = [spread(side.samples) for side in sides]
    medians = [middle for _, middle, _ in quartiles]
    errors = [
        [middle - low for low, middle, _ in quartiles],
        [high - middle for _, middle, high in quartiles],
    ]
    colors = [OURS if side.name.startswith("querybox") else THEIRS for side in sides]
    bars = axes.barh([side.name for side in sides], medians, xerr=errors, color=colors, ecolor="black")
    axes.bar_label(bars, list(map(number, medians)), padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(f"{row.title} ({row.unit})", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def draw_growth(results: Sequence[RowResult], path: Path) -> None:
    """Draw one panel per curve: time against the size of the task, with logarithmic axes."""
    points = [result for result in results if result.x is not None]
    curves = [(title, list(curve)) for title, curve in groupby(points, key=lambda result: result.title)]
    if not curves:
        return
    lines = math.ceil(len(curves) / COLUMNS)
    figure = Figure(figsize=(14, 4.5 * lines), dpi=DPI, layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False)
    for axes, (title, curve) in zip(grid.flat, curves, strict=False):
        draw_curve(axes, title, curve)
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_axis_off()
    save(figure, path)


def draw_curve(axes: Axes, title: str, curve: Sequence[RowResult]) -> None:
    """Draw one line per side."""
    for place, side in enumerate(curve[0].sides):
        measured = [
            (point.x, spread(point.sides[place].samples)[1]) for point in curve if point.sides[place].samples
        ]
        if measured:
            style = "o-" if side.name.startswith("querybox") else "s--"
            axes.loglog(*zip(*measured, strict=True), style, label=side.name)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(curve[0].unit)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a figure whose titles are not wider than their panels, so that none is cut off."""
    figure.draw_without_rendering()  # decides about the widths
    for axes in figure.axes:
        wrap_title(axes)
    figure.savefig(path)


def wrap_title(axes: Axes) -> None:
    """Break the title of a panel into as many lines as it takes."""
    text = axes.get_title(loc="left")
    title = axes.set_title(text, loc="left")
    for characters in range(len(text), 0, -1):
        title.set_text(fill(text, characters))
        if title.get_window_extent().width <= axes.get_window_extent().width:
            break
