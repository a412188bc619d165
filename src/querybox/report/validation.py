"""The page that shows the problems found in a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from querybox.data import read_image
from querybox.data.findings import KINDS, DataFinding, FindingKind, Place
from querybox.data.validate import Report
from querybox.errors import ImageError
from querybox.files import write_text
from querybox.html import jpeg_url, render
from querybox.inference.draw import draw_boxes

PICTURES = 6
"""Maximum number of pictures of one kind of problem."""
MAX_SIDE = 480
"""Maximum side of a picture in pixels."""
LISTED = 1000
"""Maximum number of places of one kind of problem; ``querybox validate --json`` lists all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One kind of problem as the page shows it."""

    kind: FindingKind
    count: int
    pictures: dict[str, str]
    """URLs of pictures by the place that they show."""
    places: list[str]
    """Places without a picture."""
    omitted: int
    """Number of places that are not listed."""


def write_validation(path: Path, report: Report) -> None:
    """Write one HTML file: the problems of every split, with pictures.

    Args:
        path: The file; its folder is created if needed.
        report: What was found.
    """
    sections = {name: [make_section(one) for one in split.findings] for name, split in report.splits.items()}
    write_text(path, render("validation.html", report=report, sections=sections))


def make_section(finding: DataFinding) -> Section:
    """Draw the first places of a finding, and list the others."""
    shown = finding.places[:LISTED]
    pictures = {}
    if finding.severity != "note":
        drawable = [place for place in shown if place.path is not None]
        urls = {place.what: draw_place(place) for place in drawable[:PICTURES]}
        pictures = {what: url for what, url in urls.items() if url is not None}
    return Section(
        kind=KINDS[finding.kind],
        count=finding.count,
        pictures=pictures,
        places=[place.what for place in shown if place.what not in pictures],
        omitted=finding.count - LISTED if len(finding.places) > LISTED else 0,
    )


def draw_place(place: Place) -> str | None:
    """Return the URL of a picture of one place; None if the image cannot be read."""
    assert place.path is not None
    try:
        image = read_image(place.path, place.size)  # in the orientation of the box
    except ImageError:
        return None
    if place.box_xyxy is not None and all(map(math.isfinite, place.box_xyxy)):
        x0, y0, x1, y1 = place.box_xyxy
        corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        box = np.clip(corners, 0, [image.width, image.height] * 2)
        image = draw_boxes(image, box[None], np.array([2]), [""])
    return jpeg_url(image, MAX_SIDE)
