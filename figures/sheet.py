"""The style of all figures: a light background, legible on dark pages, on phones and without colour."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from querybox.inference.draw import PALETTE

WIDTH = 6.0
"""Width of a figure in inches; a phone shows it on 360 pixels, where 11 points are 9 pixels."""
DPI = 180
CARD, INK = "#fafafa", "#1b1f24"
SHADE = (0.30, 0.0, 0.35)
COLOURS = tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
"""Line styles that distinguish classes or layers without colour."""
HATCHES = ("", "//", "..", "xx")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "hatch.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def sheet(height: float, **grid: Any) -> tuple[Figure, Any]:
    """Return a figure of this height in inches, and its axes; `grid` is passed to `Figure.subplots`."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots(**grid)


def save(figure: Figure, path: Path, made_of: str) -> None:
    """Write a PNG with 256 colours and a digest of what it was made from."""
    raw = BytesIO()
    with rc_context(STYLE):
        figure.savefig(raw, format="png", dpi=DPI)
    save_picture(Image.open(raw).convert("RGB"), path, made_of)


def save_picture(picture: Image.Image, path: Path, made_of: str) -> None:
    """Write an RGB image as `save` writes a figure."""
    note = PngInfo()
    note.add_text("made of", made_of)
    picture.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=note)


def show(axes: Axes, pixels: UInt8[Tensor, "3 h w"], title: str = "", *, grey: bool = False) -> None:
    """Show an image; coordinates on it are 0-1 of its width and height."""
    image = pixels.permute(1, 2, 0).numpy()
    if grey:
        image = image.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    on_unit(axes, image, title)


def on_unit(axes: Axes, values: Any, title: str = "", **how: Any) -> None:
    """Show an array as an image whose coordinates are 0-1 of its width and height."""
    height, width = values.shape[:2]
    axes.imshow(values, extent=(0, 1, 1, 0), aspect=height / width, **how)
    bare(axes, title)


def spotlight(
    axes: Axes, pixels: UInt8[Tensor, "3 h w"], weights: Float[Tensor, "rows columns"], title: str = ""
) -> None:
    """Show an image in light grey, darkened by the weight of each cell; the highest weight is almost black."""
    image = pixels.float().mean(0).numpy() / 255
    on_unit(axes, 0.45 + 0.55 * image, title, cmap="gray", vmin=0, vmax=1)
    dark = np.zeros((*weights.shape, 4), dtype=np.float32)
    dark[..., :3] = SHADE
    dark[..., 3] = 0.92 * (weights / weights.max()).numpy()
    on_unit(axes, dark, title, interpolation="nearest")


def bare(axes: Axes, title: str = "") -> None:
    """Remove ticks and spines."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, pad=4)


def frame(
    axes: Axes,
    box: Sequence[float],
    colour: str,
    *,
    dashes: Any = "-",
    label: str = "",
    width: float = 1.6,
    rim: str = "white",
) -> None:
    """Draw a box, cxcywh in 0-1, with an outline that is visible on any background, and a label in its corner."""
    x, y, w, h = box
    axes.add_patch(
        Rectangle(
            (x - w / 2, y - h / 2),
            w,
            h,
            fill=False,
            edgecolor=colour,
            linewidth=width,
            linestyle=dashes,
            path_effects=[withStroke(linewidth=width + 1.6, foreground=rim)],
        )
    )
    if label:
        write(axes, max(0.0, x - w / 2) + 0.012, max(0.0, y - h / 2) + 0.012, label, va="top")


def write(axes: Axes, x: float, y: float, text: str, **how: Any) -> None:
    """Write text on an image."""
    axes.text(
        x,
        y,
        text,
        color=how.pop("color", INK),
        fontsize=how.pop("fontsize", 10),
        fontweight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        **how,
    )


def mark(axes: Axes, x: float, y: float, text: str = "") -> None:
    """Mark a point with a cross and an optional label."""
    axes.plot(
        [x],
        [y],
        "x",
        color="white",
        markersize=9,
        markeredgewidth=2.5,
        path_effects=[withStroke(linewidth=5, foreground="black")],
    )
    if text:
        write(axes, x + 0.03, y - 0.03, text)
