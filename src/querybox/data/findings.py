"""What is found wrong, or worth knowing, about a dataset: of a fixed set of kinds, each with what to do about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from querybox.text import listed

Severity = Literal["error", "warning", "note"]
Corners = tuple[float, float, float, float]

MOST_PLACES = 100_000
"""A kind of fault that is in more places is counted on, and they are not written out."""


class Kind(NamedTuple):
    """What a finding of one name means."""

    severity: Severity
    """An error keeps the data from being used, a warning costs something, a note does not."""
    meaning: str
    cure: str


_REPLACE = "left out; replace the file, or take the image out of the annotations"
_NO_BOX = "dropped; correct the box, or remove it"

KINDS = {
    "malformed": Kind("error", "annotations that cannot be understood", "correct them"),
    "unknown_category": Kind(
        "error", "objects of a class that the dataset does not name", "name it, or correct the object"
    ),
    "repeated_image_id": Kind("error", "image ids that are not unique", "give each image its own"),
    "repeated_annotation_id": Kind("error", "annotation ids that are not unique", "give each its own"),
    "repeated_category_id": Kind("error", "category ids that are not unique", "give each class its own"),
    "repeated_category": Kind(
        "error", "classes of the same name, which could not be told apart", "rename or remove one of them"
    ),
    "no_objects": Kind("error", "no boxes to learn from", "label at least one object"),
    "too_many_unreadable": Kind(
        "error", "too many images cannot be read", "replace them, or raise data.max_corrupt"
    ),
    "missing_image": Kind("warning", "image files that are not there", _REPLACE),
    "broken_image": Kind("warning", "files that are broken or no images", _REPLACE),
    "too_large_image": Kind("warning", "images of too many pixels", "left out; make them smaller"),
    "other_size": Kind(
        "warning",
        "images of another size than their annotations say",
        "left out; correct the size, or put back the image that was annotated",
    ),
    "unknown_range": Kind(
        "warning", "images of pixels whose range is not known", "left out; save them with 8 or 16 bits"
    ),
    "ambiguous_orientation": Kind(
        "warning",
        "images whose EXIF orientation turns or mirrors them into the same size, so that it cannot be told whether the "
        "boxes follow the stored or the turned pixels",
        "taken for turned; look at their boxes, and store them upright",
    ),
    "nan_box": Kind("warning", "boxes with a NaN", _NO_BOX),
    "infinite_box": Kind("warning", "boxes with an infinite number", _NO_BOX),
    "zero_size_box": Kind("warning", "boxes without width or height", _NO_BOX),
    "negative_size_box": Kind("warning", "boxes of negative width or height", _NO_BOX),
    "outside_box": Kind("warning", "boxes outside of their image", _NO_BOX),
    "clipped_box": Kind("warning", "boxes that reach out of their image", "cut to the part that is visible"),
    "absent_image": Kind(
        "warning", "annotations of images that the file does not list", "dropped; list the image"
    ),
    "too_many_objects": Kind(
        "warning", "objects in excess of the model's queries", "they are lost; raise model.queries"
    ),
    "animation": Kind("note", "animations", "their first frame is read"),
    "other_format": Kind("note", "images in another format than their name says", "their content counts"),
    "deep_image": Kind("note", "images of 16 bits", "rescaled to 8 bits"),
    "no_area": Kind("note", "objects without an area", "that of the box counts"),
    "no_iscrowd": Kind("note", "objects that do not say whether they are a crowd", "they are none"),
    "crowd": Kind("note", "crowd regions", "no training targets, ignored in evaluation"),
    "negative": Kind("note", "images without objects", "they teach what is nothing"),
}
"""In the order of a report."""

UNREADABLE = frozenset({"missing_image", "broken_image", "too_large_image", "other_size", "unknown_range"})
"""Kinds that an image is left out for."""
BOXES = ("nan_box", "infinite_box", "zero_size_box", "negative_size_box", "outside_box", "clipped_box")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something was found, once."""

    what: str
    """The place in the file, and what is there, in one line."""
    image_id: int | None = None
    path: Path | None = None
    """Of the image."""
    box_xyxy: Corners | None = None
    """The box at fault, pixels, as it is stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of thing that was found in a dataset, and everywhere it was found."""

    kind: str
    """Of `KINDS`."""
    file: Path
    """The dataset's file or folder."""
    count: int
    places: tuple[Place, ...]
    """All of them, up to `MOST_PLACES`, in the order of the file."""

    @property
    def severity(self) -> Severity:
        """Whether the data can be used all the same."""
        return KINDS[self.kind].severity

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The images concerned, each once."""
        ids = (place.image_id for place in self.places)
        return tuple(dict.fromkeys(number for number in ids if number is not None))

    def told(self, most: int) -> str:
        """All in one line, with the first places, `most` of them."""
        kind = KINDS[self.kind]
        where = listed([place.what for place in self.places], most, separator="; ")
        return f"{self.count} {kind.meaning} ({where}): {kind.cure}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "meaning": kind.meaning,
            "cure": kind.cure,
            "file": str(self.file),
            "count": self.count,
            "image_ids": list(self.image_ids),
            "places": [place.what for place in self.places],
        }


class Findings:
    """Collects what is found in one dataset."""

    def __init__(self, file: Path, known: Sequence[Finding] = ()) -> None:
        """Start with what is `known` of the dataset `file`."""
        self.file = file
        self.places: defaultdict[str, list[Place]] = defaultdict(list)
        self.counts: defaultdict[str, int] = defaultdict(int)
        for finding in known:
            self.places[finding.kind] += finding.places
            self.counts[finding.kind] += finding.count

    def add(
        self,
        kind: str,
        what: str,
        *,
        image_id: int | None = None,
        path: Path | None = None,
        box_xyxy: Corners | None = None,
        count: int = 1,
    ) -> None:
        """Add a place, where it was found `count` times."""
        self.counts[kind] += count
        if len(self.places[kind]) < MOST_PLACES:
            self.places[kind].append(Place(what=what, image_id=image_id, path=path, box_xyxy=box_xyxy))

    def all(self) -> tuple[Finding, ...]:
        """Return one finding a kind, in the order of `KINDS`."""
        return tuple(
            Finding(kind=kind, file=self.file, count=self.counts[kind], places=tuple(self.places[kind]))
            for kind in KINDS
            if self.counts[kind]
        )
