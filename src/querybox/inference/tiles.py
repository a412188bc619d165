"""Views of large images: the whole and its tiles, and how their detections become those of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from querybox.data.windows import Window
from querybox.inference.detections import Detections
from querybox.inference.merge import merge


@dataclass(frozen=True, slots=True)
class View:
    """One of the parts of an image in which objects are detected."""

    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    windows: tuple[Window, ...]
    """All views of the image."""
    index: int
    """Index of this one."""

    @property
    def window(self) -> Window:
        """The part of the image that this view shows."""
        return self.windows[self.index]


def merged(results: Iterable[tuple[View | None, Detections]]) -> Iterator[Detections]:
    """Yield the detections of whole images.

    Args:
        results: The detections of every view, in order, in pixels of the view; None for an image without tiles. An
            image whose last view is missing, because it could not be read, is skipped.
    """
    parts: list[Detections] = []
    for view, detections in results:
        if view is None:
            yield detections
            continue
        if view.index == 0:
            parts.clear()
        parts.append(detections)
        if len(parts) == len(view.windows):
            yield merge(parts, view.windows, view.size)
