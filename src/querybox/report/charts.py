"""The charts of the report, as SVG images in URLs."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from querybox.evaluation.result import RECALLS, Evaluation
from querybox.html import data_url
from querybox.inference.draw import colour_of
from querybox.plotting import default_style
from querybox.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1d2733"
FAINT = "#dde3ea"
FEW = 12
"""More classes than this are too many to tell apart by colour, or to write numbers into a matrix."""
MOST_CONFUSED = 80
"""Maximum number of classes in the confusion matrix; beyond it, those that are confused most often are shown."""
MOST_CURVES = 200
"""Maximum number of classes with a curve of precision; beyond it, those with the most objects are shown."""
MAX_NAME = 28
"""Maximum number of characters of the name of a class in a chart."""
CURVES = {
    "Loss, all decoder layers": ("loss",),
    "Loss, last decoder layer": ("loss_cls", "loss_bbox", "loss_iou", "loss_mask", "loss_dice"),
    "Average precision": ("AP", "AP50", "AP75"),
    "Average precision by object size": ("APs", "APm", "APl"),
    "Learning rate": ("lr",),
    "Gradient norm, before clipping": ("grad_norm",),
}
"""Columns of ``metrics.csv`` that are drawn in one chart."""


def training_charts(history: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Draw the columns of ``metrics.csv`` over the epochs, by title; without charts that would be empty."""
    charts = {}
    for title, names in CURVES.items():
        curves = {name: history[name] for name in names if name in history}
        curves = {name: values for name, values in curves.items() if not all(map(math.isnan, values))}
        if curves:
            charts[title] = line_chart(title, history["epoch"], curves)
    return charts


@default_style()
def line_chart(title: str, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> str:
    """Draw named curves over the epochs; NaN values are skipped and their neighbours connected."""
    figure, axes = new_chart(title, (5.6, 3.2))
    for place, (name, values) in enumerate(curves.items()):
        points = [(at, value) for at, value in zip(x, values, strict=True) if not math.isnan(value)]
        marker = "o" if len(points) <= 60 else ""
        axes.plot(
            *zip(*points, strict=True), color=paint(place), label=literal(name), marker=marker, markersize=3
        )
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    if min(min(filter(math.isfinite, values), default=0.0) for values in curves.values()) >= 0:
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return as_svg(figure)


@default_style()
def precision_recall_chart(evaluation: Evaluation) -> str:
    """Draw precision against recall at IoU 0.50: every class, and their mean."""
    figure, axes = new_chart("Precision and recall at IoU 0.50", (5.6, 5.0))
    precision = evaluation.precision[0]  # [101, C]
    measured = [label for label, one in enumerate(evaluation.categories) if one.objects]
    few = len(measured) <= FEW
    by_objects = sorted(measured, key=lambda label: -evaluation.categories[label].objects)
    for label in sorted(by_objects[:MOST_CURVES]):
        one = evaluation.categories[label]
        name = literal(f"{one.category.name} {one.AP50:.3f}") if few else None
        colour = paint(label) if few else "#b8c2cc"
        axes.plot(RECALLS, precision[:, label], color=colour, label=name, linewidth=1.6 if few else 0.6)
    if len(measured) > 1:
        mean = precision[:, measured].mean(1)
        axes.plot(RECALLS, mean, color=INK, linestyle="--", label=f"mean of classes {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if measured:
        axes.legend(frameon=False, title="AP50")
    return as_svg(figure)


@default_style()
def confusion_chart(evaluation: Evaluation) -> str:
    """Draw the confusion matrix, of many classes those that are confused most; the shade is the share of the row."""
    confusion = evaluation.operating_point.confusion  # [K, K]
    labels = most_confused(confusion, MOST_CONFUSED)
    names = [literal(evaluation.categories[label].category.name) for label in labels]
    few = len(names) <= FEW
    side = 5.0 if few else min(18.0, 2.0 + 0.19 * len(names))
    title = "True class (row) detected as (column)"
    if len(names) < len(evaluation.categories):
        title += f": the {len(names)} classes that are confused most often, of {len(evaluation.categories):,}"
    figure, axes = new_chart(title, (side + 0.6, side))
    shown = [*labels, len(confusion) - 1]
    counts, totals = confusion[np.ix_(shown, shown)], confusion[shown].sum(1, keepdims=True)
    axes.imshow(counts / totals.clip(min=1), cmap="Blues", vmin=0, vmax=1)
    places, size = range(len(counts)), 9 if few else 8
    axes.set_xticks(places, [*names, "missed"], rotation=90, fontsize=size)
    axes.set_yticks(places, [*names, "background"], fontsize=size)
    axes.grid(visible=False)
    if few:
        for (row, column), number in np.ndenumerate(counts):
            dark = number > 0.5 * totals[row, 0]
            text = f"{number:,}" if (row, column) != (len(counts) - 1,) * 2 else ""
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else INK)
    return as_svg(figure)


def most_confused(confusion: Int[np.ndarray, "K K"], limit: int) -> list[int]:
    """Return the labels of at most `limit` classes that are most often confused with another one, in order of label."""
    classes = confusion[:-1, :-1]
    confused = classes.sum(0) + classes.sum(1) - 2 * classes.diagonal()
    return sorted(np.argsort(-confused, kind="stable")[:limit].tolist())


def new_chart(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return an empty chart of `size` inches, outside of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def as_svg(figure: Figure) -> str:
    """Return the figure as the URL of an SVG image, the same for the same figure."""
    import matplotlib

    file = io.BytesIO()
    # Text stays text, in the reader's own fonts: matplotlib's font may lack its letters.
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "querybox"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return data_url(file.getvalue(), "svg+xml")


def paint(place: int) -> str:
    """Return the colour that `draw` gives a class, in matplotlib's notation."""
    return "#{:02x}{:02x}{:02x}".format(*colour_of(place))


def literal(name: str) -> str:
    """Return a name for matplotlib: one line, shortened to `MAX_NAME`, with ``$`` escaped, as it starts a formula.

    An invisible word joiner comes before an underscore, as matplotlib leaves labels that begin with one out of legends.
    """
    line = printable(" ".join(name.split()))
    short = line if len(line) <= MAX_NAME else line[: MAX_NAME - 1] + "…"
    return "\u2060" * short.startswith("_") + short.replace("$", r"\$")
