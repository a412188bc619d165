"""The page that shows what is wrong with a dataset."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from querybox.data import read_image
from querybox.data.findings import KINDS, Finding, Place
from querybox.data.validate import Report, SplitReport
from querybox.errors import ImageError
from querybox.inference.draw import draw_boxes
from querybox.report import page

SHOWN = 6
"""Pictures of a kind."""
WIDTH = 480
LISTED = 1000
"""Places of a kind; the report in JSON has all of them."""


def write_validation(path: Path, report: Report) -> None:
    """Write one HTML file: what was found in every split, with pictures of it.

    Args:
        path: The file; its folder is made.
        report: What was found.
    """
    sections = [
        part
        for name, split in report.splits.items()
        for part in (overview(name, split), *details(name, split))
    ]
    verdict = (
        "The data can be used." if report.usable else "The data cannot be used as they are: there are errors."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.page(f"Validation of {report.source}", verdict, sections), encoding="utf-8")


def overview(name: str, split: SplitReport) -> str:
    """Say how much there is, and what was found."""
    tiles = {
        "images": f"{split.images:,}",
        "images left out": f"{split.left_out:,}",
        "objects": f"{split.objects:,}",
        "classes": f"{len(split.categories):,}",
    }
    rows = [
        [found.severity, f"{found.count:,}", KINDS[found.kind].meaning, KINDS[found.kind].cure]
        for found in split.findings
    ]
    table = page.table(["severity", "count", "what", "what becomes of it, and what to do"], rows, numeric={1})
    return page.section(name, page.tiles(tiles) + (table if rows else page.paragraph("Nothing is wrong.")))


def details(name: str, split: SplitReport) -> Iterator[str]:
    """Show where each thing was found."""
    for found in split.findings:
        rows = [[place.what] for place in found.places[:LISTED]]
        more = found.count - len(rows)
        note = page.paragraph(f"And {more:,} more.") if more > 0 and len(rows) == LISTED else ""
        yield page.section(
            f"{name}: {KINDS[found.kind].meaning}", thumbnails(found) + page.table(["where"], rows) + note
        )


def thumbnails(found: Finding) -> str:
    """Show the first images with which something is wrong; those that cannot be read have no picture."""
    places = [place for place in found.places if place.path is not None and found.severity != "note"]
    figures = [figure for place in places[:SHOWN] if (figure := thumbnail(place))]
    return page.grid(figures) if figures else ""


def thumbnail(place: Place) -> str:
    """Draw one place, small; nothing if the image cannot be read."""
    assert place.path is not None
    try:
        image = read_image(place.path)
    except ImageError:
        return ""
    if place.box_xyxy is not None and all(map(math.isfinite, place.box_xyxy)):
        x0, y0, x1, y1 = place.box_xyxy
        corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        box = np.clip(corners, 0, [image.width, image.height] * 2)
        image = draw_boxes(image, box[None], np.array([2]), [""])
    image.thumbnail((WIDTH, WIDTH))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=82)
    return page.figures({place.what: file.getvalue()}, place.what, None)
