"""What a dataset is once it has been read: categories, images, and the boxes of each image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int64

from querybox.data.findings import BOXES, UNREADABLE, Finding, Findings
from querybox.data.image import read_size
from querybox.errors import DataError, ImageError
from querybox.structures import Category
from querybox.text import listed

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
    size_stated: bool = True
    """Whether the annotations say of which size the image is; else its header does, turned as its EXIF says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionData:
    """A dataset, or one split of it, in the order of its file."""

    source: Path
    """The file or folder that was read."""
    categories: tuple[Category, ...]
    """By label, with the ids and names of the data."""
    images: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...] = ()
    """What was wrong with it, or is worth knowing; one a kind."""

    @property
    def num_objects(self) -> int:
        """How many boxes there are to learn: crowds do not count."""
        return sum(int((~image.crowd).sum()) for image in self.images)

    @property
    def faulty_boxes(self) -> dict[str, int]:
        """How many boxes were dropped, or cut to their image, for each kind of fault."""
        return {found.kind: found.count for found in self.findings if found.kind in BOXES}

    @property
    def unreadable(self) -> dict[str, int]:
        """How many images were left out, for each kind of fault."""
        return {found.kind: found.count for found in self.findings if found.kind in UNREADABLE}

    @property
    def left_out(self) -> dict[int, str]:
        """Why images were left out, by their ids."""
        return {
            place.image_id: place.what
            for found in self.findings
            if found.kind in UNREADABLE
            for place in found.places
            if place.image_id is not None
        }

    def only(self, image_ids: Container[int]) -> Self:
        """Return the same with some of the images."""
        return replace(self, images=tuple(image for image in self.images if image.id in image_ids))


def sound_record(
    *,
    id: int,  # noqa: A002 - the field's name
    path: Path,
    width: int,
    height: int,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[int],
    findings: Findings,
    where: Callable[[int], str],
    crowd: Sequence[bool] | None = None,
    areas: Sequence[float | None] | None = None,
    size_stated: bool = True,
) -> ImageRecord:
    """Make a record of boxes as a file states them: drop those that are no boxes, cut the others to the image.

    Args:
        id: The image's id in its dataset.
        path: The image file.
        width: Pixels.
        height: Pixels.
        boxes_xyxy: Corners in pixels, G of them.
        labels: Class of each box, 0 ... C-1.
        findings: What is wrong with boxes is added to these.
        where: Says where in the file the n-th box stands, from 0.
        crowd: Which boxes are crowds; None = none.
        areas: Area of each object in pixels; where it is None or not positive, the area of the box counts.
        size_stated: Whether width and height are the file's; see `ImageRecord`.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    inside = np.clip(boxes, 0.0, (width, height, width, height))
    finite = np.isfinite(boxes).all(1)
    sized = finite & (boxes[:, 2:] > boxes[:, :2]).all(1)
    keep = sized & (inside[:, 2:] > inside[:, :2]).all(1)
    nan = np.isnan(boxes).any(1)
    negative = finite & (boxes[:, 2:] < boxes[:, :2]).any(1)
    faults = {
        "nan_box": nan,
        "infinite_box": ~finite & ~nan,
        "zero_size_box": finite & ~sized & ~negative,
        "negative_size_box": negative,
        "outside_box": sized & ~keep,
        "clipped_box": keep & (np.abs(inside - boxes) > ROUNDING).any(1),
    }
    for kind, faulty in faults.items():
        for number in np.flatnonzero(faulty).tolist():
            box = tuple(boxes[number].tolist())
            what = f"{where(number)}, image {id}: corners {', '.join(f'{side:g}' for side in box)} in {width}x{height}"
            findings.add(kind, what, image_id=id, path=path, box_xyxy=box)

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
        size_stated=size_stated,
    )


def size_in_header(path: Path, image_id: int, findings: Findings) -> tuple[int, int] | None:
    """Return (height, width) of an image that the annotations do not state; None, and why, where it is unreadable."""
    try:
        return read_size(path)
    except ImageError as error:
        findings.add(error.kind, str(error), image_id=image_id, path=path)
        return None


def require_sound(data: DetectionData) -> DetectionData:
    """Return `data`, with which nothing is wrong that keeps it from being used.

    Raises:
        DataError: Something is; all of it is listed.
    """
    errors = [found for found in data.findings if found.severity == "error"]
    if errors:
        raise DataError(f"{data.source}: {' | '.join(found.told(10) for found in errors)}")
    return data


def require_present(data: DetectionData, max_corrupt: float) -> DetectionData:
    """Return `data`, most of whose image files exist.

    Raises:
        DataError: More than a share `max_corrupt` (0-1) of them are missing.
    """
    gone = [*data.left_out.values(), *(str(image.path) for image in data.images if not image.path.is_file())]
    total = len(data.images) + len(data.left_out)
    if len(gone) > max_corrupt * total:
        raise DataError(
            f"{data.source}: {len(gone)} of {total} images are missing or broken, more than max_corrupt = "
            f"{max_corrupt:g} allows: {listed(gone)}; put them back, or take them out of the annotations"
        )
    return data


def warn(data: DetectionData) -> None:
    """Say in one log line what is wrong with `data`, though it can be used."""
    warnings = [found.told(2) for found in data.findings if found.severity == "warning"]
    if warnings:
        log.warning("%s: %s ('querybox validate' shows all)", data.source, " | ".join(warnings))


def require_images(data: DetectionData, folders: Sequence[Path]) -> DetectionData:
    """Return `data`, some of whose image files exist; that all do, only reading them shows.

    Args:
        data: The dataset.
        folders: Where its images were looked for, for the message.

    Raises:
        DataError: There are no images, or none is there.
    """
    if any(image.path.is_file() for image in data.images):
        return data
    if any(found.severity == "error" for found in data.findings):
        return data  # what is wrong is known
    unreadable = [found.told(3) for found in data.findings if found.kind in UNREADABLE]
    if not data.images and not unreadable:
        raise DataError(f"{data.source}: lists no images; a dataset needs at least one")
    searched = ", ".join(str(folder) for folder in folders)
    named = f"the first is '{data.images[0].path.name}'" if data.images else " | ".join(unreadable)
    raise DataError(
        f"{data.source}: none of its images can be read: {named}; searched {searched}; put images into one of these "
        "folders"
    )
