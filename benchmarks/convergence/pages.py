"""Curves as tables, as a plot, and as a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.convergence.curves import Curve, Point
from benchmarks.convergence.ours import OURS
from benchmarks.measure import RowResult

PAGE = Template(Path(__file__).with_name("page.md").read_text(encoding="utf-8"))
GOALS = ((2, 0.30), (10, 0.75))
"""Minutes of training, and the AP50 on the validation split to be reached by then."""


def tables(curves: Sequence[Curve]) -> list[str]:
    """Return tables of each model's accuracy and epochs by minutes."""
    return [
        "AP / AP50 on the validation split, after minutes of training:",
        by_minutes(curves, lambda point: f"{point.AP:.3f} / {point.AP50:.3f}"),
        "Epochs seen by then:",
        by_minutes(curves, lambda point: f"{point.epochs:.1f}"),
    ]


def by_minutes(curves: Sequence[Curve], cell: Callable[[Point], str]) -> str:
    """Return a table with one line per model and one column per mark."""
    minutes = sorted({point.minutes for curve in curves for point in curve.points})
    lines = [["", *(f"{mark:g} min" for mark in minutes)], ["---", *["---:"] * len(minutes)]]
    for curve in curves:
        cells = {point.minutes: cell(point) for point in curve.points}
        lines.append([curve.title, *(cells.get(mark, "") for mark in minutes)])
    return report.table(lines)


def goals(curves: Sequence[Curve]) -> str:
    """Return a table with one line per measured goal; the best of querybox's models counts."""
    lines = [["goal", "measured", "by", "reached"], ["---"] * 4]
    for minutes, wanted in GOALS:
        known = [
            (point.AP50, curve.title)
            for curve in curves
            for point in curve.points
            if curve.name in OURS and point.minutes == minutes
        ]
        if known:
            value, title = max(known)
            reached = "yes" if value >= wanted else "**no**"
            lines.append([f"AP50 {wanted:.2f} after {minutes} minutes", f"{value:.3f}", title, reached])
    return report.table(lines) if lines[2:] else ""


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw AP and AP50 against minutes and epochs, one line per model."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    for curve in curves:
        style = "o-" if curve.name in OURS else "s--"
        minutes = [0.0, *(point.seconds / 60 for point in curve.points)]
        epochs = [0.0, *(point.epochs for point in curve.points)]
        for row, metric in enumerate(("AP", "AP50")):
            heights = [0.0, *(getattr(point, metric) for point in curve.points)]
            grid[row, 0].plot(minutes, heights, style, label=curve.title)
            grid[row, 1].plot(epochs, heights, style)
            grid[row, 0].set_ylabel(metric)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    grid[0, 0].legend(fontsize=8)
    grid[1, 0].set_xlabel("minutes of training")
    grid[1, 1].set_xlabel("epochs")
    figure.savefig(path, dpi=90)


def page(
    curves: Sequence[Curve], others: Mapping[str, Sequence[Curve]], steps: Sequence[RowResult], picture: str
) -> str:
    """Return the page of the documentation; what has not been measured is omitted.

    Args:
        curves: Curves on the blood cells.
        others: Curves on other datasets, by name.
        steps: Benchmark rows of training steps.
        picture: Path of the plot.
    """
    parts = []
    if curves:
        parts += ["## AP over time", f"![AP and AP50 over minutes and epochs]({picture})"]
        parts += [*tables(curves), goals(curves)]
    for data, measured in others.items():
        parts += [f"## Untouched, on other data: {data}", *tables(measured)]
    for row in steps:
        parts += [f"## {row.title}", report.row_table(row), report.goals_table([row])]
    facts = [curve.environment for curve in chain(curves, *others.values())]
    text = PAGE.substitute(
        results="\n\n".join(filter(None, parts)),
        environment=report.environment([*facts, *(row.environment for row in steps)]),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
