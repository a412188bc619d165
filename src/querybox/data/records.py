"""What a dataset is once it has been read: categories, images, and the boxes of each image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from querybox.errors import DataError
from querybox.structures import Category

log = logging.getLogger(__name__)

ROUNDING = 0.01
"""Pixels by which a box may reach beyond the image without being counted as `clipped`: formats round."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRecord:
    """One image and the objects in it. An image without objects is a negative: it teaches what is nothing."""

    id: int
    path: Path
    width: int
    """Pixels of the image that the boxes were drawn on."""
    height: int
    boxes_xyxy: Float64[np.ndarray, "G 4"]
    """Pixels, inside the image, of positive width and height."""
    labels: Int64[np.ndarray, " G"]
    """Class of each object, 0 ... C-1."""
    crowd: Bool[np.ndarray, " G"]
    """True = a region of many objects: never a training target, ignored in evaluation as COCO does."""
    areas: Float64[np.ndarray, " G"]
    """Pixels, as the data states them (COCO: of the segmentation); of the box where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionData:
    """A dataset, or one split of it, in the order of its file."""

    source: Path
    """The file or folder that was read."""
    categories: tuple[Category, ...]
    """By label, with the ids and names of the data."""
    images: tuple[ImageRecord, ...]
    dropped: Mapping[str, int]
    """How many boxes had each kind of fault: `not_finite`, `empty` (no width or no height), `outside` (the
    image) and `absent_image` were dropped; `clipped` were cut to the image and kept."""

    @property
    def num_objects(self) -> int:
        """How many boxes there are to learn: crowds do not count."""
        return sum(int((~image.crowd).sum()) for image in self.images)


def sound_record(
    *,
    id: int,  # noqa: A002 - the field's name
    path: Path,
    width: int,
    height: int,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[int],
    faults: Counter[str],
    crowd: Sequence[bool] | None = None,
    areas: Sequence[float | None] | None = None,
) -> ImageRecord:
    """Make a record of boxes as a file states them: drop those that are no boxes, cut the others to the image.

    Args:
        id: The image's id in its dataset.
        path: The image file.
        width: Pixels.
        height: Pixels.
        boxes_xyxy: Corners in pixels, G of them.
        labels: Class of each box, 0 ... C-1.
        faults: Counts per kind of fault; added to.
        crowd: Which boxes are crowds; None = none.
        areas: Area of each object in pixels; where it is None or not positive, the area of the box counts.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    inside = np.clip(boxes, 0.0, (width, height, width, height))
    finite = np.isfinite(boxes).all(1)
    sized = finite & (boxes[:, 2:] > boxes[:, :2]).all(1)
    keep = sized & (inside[:, 2:] > inside[:, :2]).all(1)
    faults["not_finite"] += int((~finite).sum())
    faults["empty"] += int((finite & ~sized).sum())
    faults["outside"] += int((sized & ~keep).sum())
    faults["clipped"] += int((keep & (np.abs(inside - boxes) > ROUNDING).any(1)).sum())

    stated = np.asarray(areas if areas is not None else [None] * len(boxes), dtype=np.float64)  # None -> NaN
    sides = inside[:, 2:] - inside[:, :2]
    known = np.isfinite(stated) & (stated > 0)
    return ImageRecord(
        id=id,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=inside[keep],
        labels=np.asarray(labels, dtype=np.int64)[keep],
        crowd=np.asarray(crowd if crowd is not None else [False] * len(boxes), dtype=bool)[keep],
        areas=np.where(known, stated, sides[:, 0] * sides[:, 1])[keep],
    )


def finish(
    source: Path, categories: Sequence[Category], images: Sequence[ImageRecord], faults: Counter[str]
) -> DetectionData:
    """Put a dataset together and say in one log line which faults it had."""
    dropped = {kind: count for kind, count in sorted(faults.items()) if count}
    if dropped:
        counts = ", ".join(f"{count} {kind}" for kind, count in dropped.items())
        log.warning("%s: boxes dropped (or, if clipped, cut to the image): %s", source, counts)
    return DetectionData(source=source, categories=tuple(categories), images=tuple(images), dropped=dropped)


def require_images(data: DetectionData, folders: Sequence[Path]) -> DetectionData:
    """Return `data`, all of whose image files exist.

    Args:
        data: The dataset.
        folders: Where its images were looked for, for the message.

    Raises:
        DataError: There are no images, or some files are missing.
    """
    if not data.images:
        raise DataError(f"{data.source}: lists no images; a dataset needs at least one")
    missing = [image.path for image in data.images if not image.path.is_file()]
    if missing:
        searched = ", ".join(str(folder) for folder in folders)
        raise DataError(
            f"{data.source}: {len(missing)} of {len(data.images)} images are missing, the first is "
            f"'{missing[0].name}'; searched {searched}; put the images into one of these folders"
        )
    return data


def require_objects(data: DetectionData) -> DetectionData:
    """Return `data`, which has something to learn.

    Raises:
        DataError: No image has a box that is not a crowd.
    """
    if not data.num_objects:
        faults = ", ".join(f"{count} {kind}" for kind, count in data.dropped.items())
        raise DataError(
            f"{data.source}: {len(data.images)} images but no boxes to learn from"
            + (f" ({faults})" if faults else "")
            + "; training needs at least one labelled box"
        )
    return data


def listed(items: Sequence[object], limit: int = 10) -> str:
    """Say `items` in one line, the first `limit` of them by name."""
    text = ", ".join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
