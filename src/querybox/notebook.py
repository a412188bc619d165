"""What a value shows of itself in Jupyter: plain HTML, every text in it escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

WIDTH = 640
"""Pixels that a picture is made small to, where it is larger."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(heads, 'th')}</thead><tbody>{body}</tbody></table>"


def share(value: float) -> str:
    """Write a number of 0-1 with three digits; a hyphen for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def picture(
    size: tuple[int, int],
    boxes_xyxy: Iterable[Sequence[float]],
    captions: Iterable[str],
    image: Image.Image | None,
) -> str:
    """Return boxes with captions, white on black, over the image where there is one.

    Args:
        size: (height, width) that the boxes are in.
        boxes_xyxy: Corners.
        captions: Of each box.
        image: Of any resolution.
    """
    height, width = size
    unit = width / WIDTH  # about a pixel of the screen
    parts = [
        f'<rect width="{width}" height="{height}" fill="#888"/>' if image is None else embedded(image, size)
    ]
    for (left, top, right, bottom), caption in zip(boxes_xyxy, captions, strict=True):
        place = (
            f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" fill="none"'
        )
        parts += [
            f'<rect {place} stroke="{colour}" stroke-width="{thick * unit:.2f}"/>'
            for colour, thick in (("#000", 4), ("#fff", 2))
        ]
        parts.append(
            f'<text x="{left + 4 * unit:.1f}" y="{top + 15 * unit:.1f}" font-size="{13 * unit:.1f}" fill="#fff" '
            f'stroke="#000" stroke-width="{3 * unit:.1f}" paint-order="stroke" font-family="sans-serif">'
            f"{escape(caption)}</text>"
        )
    style = f"width:100%;max-width:{WIDTH}px;height:auto"
    return f'<svg viewBox="0 0 {width} {height}" style="{style}">{"".join(parts)}</svg>'


def embedded(image: Image.Image, size: tuple[int, int]) -> str:
    """Return an image, small, as part of an SVG of (height, width)."""
    small = image.copy()
    small.thumbnail((WIDTH, WIDTH))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return f'<image width="{size[1]}" height="{size[0]}" preserveAspectRatio="none" href="{source}"/>'
