"""Images to report on, what a report has, and reports without charts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from querybox.data.records import DetectionData, ImageRecord
from querybox.structures import Category

# Names as hostile as data can hold them: markup, a formula of matplotlib, letters that its font lacks.
NAMES = ("<script>alert(1)</script>", r"$\frac{$", "細胞", "x" * 80, "plain & simple")
CATEGORIES = tuple(Category(id=number, name=name) for number, name in enumerate(NAMES))


def make_data(folder: Path, images: int = 6) -> DetectionData:
    records = []
    for number in range(images):
        path = folder / f"<b>{number}.png"
        Image.new("RGB", (64, 48), (90, 10 * number, 120)).save(path)
        records.append(
            ImageRecord(
                id=number,
                path=path,
                width=64,
                height=48,
                boxes_xyxy=np.array([[5.0, 5.0, 30.0, 40.0]] * min(number, 1)).reshape(-1, 4),
                labels=np.array([number % 5] * min(number, 1), dtype=np.int64),
                crowd=np.zeros(min(number, 1), dtype=bool),
                areas=np.full(min(number, 1), 875.0),
            )
        )
    return DetectionData(source=folder / "<i>.json", categories=CATEGORIES, images=tuple(records))


def without_charts() -> AbstractContextManager[object]:
    """Draw no charts in reports: they take a third of a tiny run's time, and are tested in `tests/report`."""
    return mock.patch.multiple(
        "querybox.report.charts",
        new_chart=mock.Mock(return_value=(mock.MagicMock(), mock.MagicMock())),
        as_svg=mock.Mock(return_value="data:,"),
    )


class Page(HTMLParser):
    """Collects the elements and the text of a page, and checks that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.images: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.images += [values["src"] or ""] if tag == "img" else []
        self.links += [values[name] or "" for name in ("href", "src") if name in values]
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(run_dir: Path) -> Page:
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))
