"""The in-memory form of a dataset: categories, images, and the boxes of each image."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from os.path import isfile as is_file  # Path.is_file raises for names that are too long
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int64

from querybox.data.findings import BOXES, UNREADABLE, DataFinding, FindingCollector
from querybox.data.shards import ImageFile, ShardImage
from querybox.data.tiff import image_size
from querybox.errors import DataError, ImageError
from querybox.masks import Region, Rle
from querybox.structures import Category
from querybox.text import counted, listed
from querybox.urls import public_name

logger = logging.getLogger(__name__)

ROUNDING = 0.01
"""Pixels by which a box may extend beyond the image without counting as clipped, because formats round."""

_OBJECTS = np.dtype(
    [("box_xyxy", np.float64, 4), ("area", np.float64), ("label", np.int64), ("crowd", np.bool_)], align=True
)
_NO_OBJECTS = np.zeros(0, _OBJECTS)
_SIZE_BITS, _START_BITS = 32, 64
"""Bits of the size and of the start of an image in a shard, which are kept in one number, below its row group."""
Unit: TypeAlias = tuple[str, int | None]
"""A part of a shard: the path or URL of a tar, and None; or that of a Parquet file, and the number of a row group."""
_Note: TypeAlias = Callable[..., None]
"""Adds a finding, given its kind, the number of the object in its image, and what is wrong."""


class ImageRecord:
    """An image and its objects. Images without objects are negative examples.

    A dataset of 100,000 images has as many records, so that they are compact: one array for all properties of the
    objects, and one string for the folder of many images.

    Args:
        id: Its id in the dataset.
        path: The image file, which may be in a shard.
        width: Width of the image that the boxes refer to, in pixels.
        height: Height of the image that the boxes refer to, in pixels.
        boxes_xyxy: Corners of G objects in pixels, inside the image, with positive width and height.
        labels: Class of each object, 0 ... C-1.
        crowd: True = a region of many objects: not a training target, and ignored in evaluation as in COCO.
        areas: Area in square pixels as given in the data (in COCO, of the segmentation), otherwise that of the box.
        size_stated: Whether the size comes from the annotations; otherwise from the header, with EXIF orientation.
        masks: The region of each object, None for those of which only the box is known; None if this holds for all.

    Attributes:
        shard: Path or URL of the shard that the image is in; None for a file of its own.
    """

    __slots__ = (
        "_extent",
        "_folder",
        "_name",
        "_objects",
        "height",
        "id",
        "masks",
        "shard",
        "size_stated",
        "width",
    )

    def __init__(
        self,
        *,
        id: int,  # noqa: A002 - the attribute's name
        path: ImageFile,
        width: int,
        height: int,
        boxes_xyxy: Float64[np.ndarray, "G 4"],
        labels: Int64[np.ndarray, " G"],
        crowd: Bool[np.ndarray, " G"],
        areas: Float64[np.ndarray, " G"],
        size_stated: bool = True,
        masks: Sequence[Region | None] | None = None,
    ) -> None:
        self.id = id
        self.width = width
        self.height = height
        self.size_stated = size_stated
        self.masks = None if masks is None or all(mask is None for mask in masks) else tuple(masks)
        self.shard: str | None = None
        if isinstance(path, ShardImage):
            self.shard = sys.intern(path.shard)
            group = 0 if path.group is None else path.group + 1  # 0 in a tar
            self._extent = (group << _START_BITS | path.start) << _SIZE_BITS | path.size
            folder = public_name(path.shard)
            # A copy: among the originals is what was in memory for the annotations, which could not be given back.
            self._name = path.name.encode(errors="surrogateescape").decode(errors="surrogateescape")
        else:
            folder, self._name = os.path.split(path)
        self._folder = sys.intern(folder)
        self._objects = _NO_OBJECTS
        if len(labels):
            self._objects = np.empty(len(labels), _OBJECTS)
            self._objects["box_xyxy"], self._objects["area"] = boxes_xyxy, areas
            self._objects["label"], self._objects["crowd"] = labels, crowd

    @property
    def file(self) -> ImageFile:
        """The image file."""
        if self.shard is None:
            return self.path
        place, size = divmod(self._extent, 1 << _SIZE_BITS)
        group, start = divmod(place, 1 << _START_BITS)
        return ShardImage(self.shard, self._name, start, size, group - 1 if group else None)

    @property
    def path(self) -> Path:
        """The path of the image file. A shard is not a folder, so in one the path only tells images apart."""
        return Path(self._folder, self._name)

    @property
    def unit(self) -> Unit | None:
        """The tar or the row group that the image is in; None for a file of its own."""
        if self.shard is None:
            return None
        group = self._extent >> (_SIZE_BITS + _START_BITS)
        return self.shard, group - 1 if group else None

    @property
    def is_missing(self) -> bool:
        """Whether there is no such file. Images in shards have been found in them."""
        return self.shard is None and not is_file(self.path)  # noqa: PTH113

    def renumber(self, labels: Int64[np.ndarray, " C"]) -> None:
        """Replace the class of each object by that at its index in `labels`."""
        self._objects["label"] = labels[self._objects["label"]]

    @property
    def boxes_xyxy(self) -> Float64[np.ndarray, "G 4"]:
        """Corners in pixels, inside the image, with positive width and height."""
        return self._objects["box_xyxy"]

    @property
    def labels(self) -> Int64[np.ndarray, " G"]:
        """Class of each object, 0 ... C-1."""
        return self._objects["label"]

    @property
    def crowd(self) -> Bool[np.ndarray, " G"]:
        """True = a region of many objects: not a training target, and ignored in evaluation as in COCO."""
        return self._objects["crowd"]

    @property
    def areas(self) -> Float64[np.ndarray, " G"]:
        """Area in square pixels as given in the data (in COCO, of the segmentation), otherwise that of the box."""
        return self._objects["area"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionData:
    """A dataset or one of its splits, in the order of the file."""

    source: Path | str
    """The file or folder that was read, or the URL of its shards without credentials."""
    categories: tuple[Category, ...]
    """Classes by label, with the ids and names of the dataset."""
    images: tuple[ImageRecord, ...]
    findings: tuple[DataFinding, ...] = ()
    """Problems of the dataset and notes, one finding per kind."""
    panoptic: bool = False
    """Whether every pixel is of one object (a segment, of a thing or of stuff) or void, that is, not annotated."""

    def __repr__(self) -> str:
        """Return, for example, ``DetectionData('photos/train', 87 images, 1,204 objects)``."""
        counts = counted(len(self.images), "image"), counted(self.num_objects, "object")
        return f"DetectionData({str(self.source)!r}, {', '.join(counts)})"

    @property
    def num_objects(self) -> int:
        """Number of objects, without crowd regions."""
        return sum(int((~image.crowd).sum()) for image in self.images)

    @property
    def faulty_boxes(self) -> dict[str, int]:
        """Number of boxes that were dropped or clipped, by kind of finding."""
        return {finding.kind: finding.count for finding in self.findings if finding.kind in BOXES}

    @property
    def unreadable(self) -> dict[str, int]:
        """Number of images that were excluded, by kind of finding."""
        return {finding.kind: finding.count for finding in self.findings if finding.kind in UNREADABLE}

    @property
    def excluded(self) -> dict[int, str]:
        """Reasons why images were excluded, by image id."""
        return {
            place.image_id: place.what
            for finding in self.findings
            if finding.kind in UNREADABLE
            for place in finding.places
            if place.image_id is not None
        }

    def only(self, image_ids: Container[int]) -> Self:
        """Return the dataset with only the images with these ids."""
        return replace(self, images=tuple(image for image in self.images if image.id in image_ids))


def make_record(
    *,
    id: int,  # noqa: A002 - the field's name
    path: ImageFile,
    size: tuple[int, int],
    boxes_xyxy: Sequence[Sequence[float]] | Float64[np.ndarray, "G 4"],
    labels: Sequence[int] | Int64[np.ndarray, " G"],
    findings: FindingCollector,
    locate: Callable[[int], str],
    crowd: Sequence[bool] | Bool[np.ndarray, " G"] | None = None,
    areas: Sequence[float | None] | Float64[np.ndarray, " G"] | None = None,
    size_stated: bool = True,
    masks: Sequence[Region | None] | None = None,
    boxed: Sequence[bool] | None = None,
) -> ImageRecord:
    """Create the record of an image: drop invalid boxes and clip the others to the image.

    Args:
        id: Id of the image in its dataset.
        path: The image file, which may be in a shard.
        size: (height, width) of the image in pixels.
        boxes_xyxy: Corners of G boxes in pixels, as given in the file.
        labels: Class of each box, 0 ... C-1.
        findings: Collects the problems of boxes.
        locate: Returns a description of the location in the file of the n-th box, from 0.
        crowd: Which boxes are crowd regions; None if none are.
        areas: Area of each object in square pixels; where it is None or not positive, the area of the box is used.
        size_stated: Whether the size comes from the annotations; see `ImageRecord`.
        masks: The region of each object; those that do not fit the image are dropped.
        boxed: Whether the box of each object is that of its mask; None if none is.
    """
    height, width = size
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    inside = np.clip(boxes, 0.0, (width, height, width, height))

    def note(kind: str, number: int, what: str, **place: Any) -> None:
        findings.add(kind, f"{locate(number)}, image {id}: {what}", image_id=id, path=path, **place)

    keep = _note_faulty_boxes(boxes, inside, size, note)
    regions = None if masks is None else _fitting_masks(masks, boxed, size, note)
    stated = np.asarray(areas if areas is not None else [None] * len(boxes), dtype=np.float64)  # None -> NaN
    sides = inside[:, 2:] - inside[:, :2]
    valid = np.isfinite(stated) & (stated > 0)
    return ImageRecord(
        id=id,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=inside[keep],
        labels=np.asarray(labels, dtype=np.int64)[keep],
        crowd=np.asarray(crowd if crowd is not None else [False] * len(boxes), dtype=bool)[keep],
        areas=np.where(valid, stated, sides[:, 0] * sides[:, 1])[keep],
        size_stated=size_stated,
        masks=None if regions is None else list(compress(regions, keep)),
    )


def _note_faulty_boxes(
    boxes: Float64[np.ndarray, "G 4"], inside: Float64[np.ndarray, "G 4"], size: tuple[int, int], note: _Note
) -> Bool[np.ndarray, " G"]:
    """Note the problems of boxes in an image of this (height, width), and return which boxes are kept."""
    keep, faults = _box_faults(boxes, inside)
    for kind, faulty in faults.items():
        for number in np.nonzero(faulty)[0].tolist():
            box = tuple(boxes[number].tolist())
            corners = ", ".join(f"{side:g}" for side in box)
            note(kind, number, f"corners {corners} in {size[1]}x{size[0]}", box_xyxy=box, size=size)
    return keep


def _fitting_masks(
    masks: Sequence[Region | None], boxed: Sequence[bool] | None, size: tuple[int, int], note: _Note
) -> list[Region | None]:
    """Return the masks that fit an image of this (height, width); note the problems of the others, which are None."""
    fitting: list[Region | None] = []
    for number, mask in enumerate(masks):
        problem = mask.problem(size) if isinstance(mask, Rle) else ""
        if problem and boxed is not None and boxed[number]:
            note(
                "malformed",
                number,
                f"has no bbox, and {problem}; expected a bbox, or a mask that fits its image",
            )
        elif problem:
            note("malformed_mask", number, problem)
        fitting.append(None if problem else mask)
    return fitting


def _box_faults(
    boxes: Float64[np.ndarray, "G 4"], inside: Float64[np.ndarray, "G 4"]
) -> tuple[Bool[np.ndarray, " G"], dict[str, Bool[np.ndarray, " G"]]]:
    """Return which boxes are kept, and which have each kind of finding.

    Args:
        boxes: Corners in pixels.
        inside: The corners, clipped to the image.
    """
    finite = np.isfinite(boxes).all(1)
    sized = finite & (boxes[:, 2:] > boxes[:, :2]).all(1)
    keep = sized & (inside[:, 2:] > inside[:, :2]).all(1)
    nan = np.isnan(boxes).any(1)
    negative = finite & (boxes[:, 2:] < boxes[:, :2]).any(1)
    return keep, {
        "nan_box": nan,
        "infinite_box": ~finite & ~nan,
        "zero_size_box": finite & ~sized & ~negative,
        "negative_size_box": negative,
        "outside_box": sized & ~keep,
        "clipped_box": keep & (np.abs(inside - boxes) > ROUNDING).any(1),
    }


def read_size_or_note(path: ImageFile, image_id: int, findings: FindingCollector) -> tuple[int, int] | None:
    """Return (height, width) from the image header; if it cannot be read, add a finding and return None."""
    try:
        return image_size(path)
    except ImageError as error:
        findings.add(error.kind, str(error), image_id=image_id, path=path)
        return None


def require_usable(data: DetectionData) -> DetectionData:
    """Return `data` if none of its findings is an error.

    Raises:
        DataError: There are errors; the message lists all of them.
    """
    errors = [finding for finding in data.findings if finding.severity == "error"]
    if errors:
        raise DataError(f"{data.source}: {' | '.join(finding.summary(10) for finding in errors)}")
    return data


def require_image_files(data: DetectionData, max_corrupt: float) -> DetectionData:
    """Return `data` if enough of its image files exist.

    Raises:
        DataError: More than the fraction `max_corrupt` (0-1) of them is missing or corrupt.
    """
    missing = [
        *data.excluded.values(),
        *(str(image.path) for image in data.images if image.is_missing),
    ]
    total = len(data.images) + len(data.excluded)
    if len(missing) > max_corrupt * total:
        raise DataError(
            f"{data.source}: {len(missing)} of {total} images are missing or corrupt, more than max_corrupt = "
            f"{max_corrupt:g} allows: {listed(missing)}; restore them, or remove them from the annotations"
        )
    return data


def log_warnings(data: DetectionData) -> None:
    """Log the warnings among the findings in one line."""
    warnings = [finding.summary(2) for finding in data.findings if finding.severity == "warning"]
    if warnings:
        logger.warning("%s: %s (run 'querybox validate' for all)", data.source, " | ".join(warnings))


def require_any_image(data: DetectionData, folders: Sequence[Path]) -> DetectionData:
    """Return `data` if at least one of its image files exists.

    Args:
        data: The dataset.
        folders: The folders that were searched for its images, for the message.

    Raises:
        DataError: The dataset lists no images, or none of them exists.
    """
    if not all(image.is_missing for image in data.images):
        return data
    if any(finding.severity == "error" for finding in data.findings):
        return data  # reported already
    unreadable = [finding.summary(3) for finding in data.findings if finding.kind in UNREADABLE]
    if not data.images and not unreadable:
        raise DataError(f"{data.source}: lists no images; a dataset needs at least one")
    searched = ", ".join(str(folder) for folder in folders)
    reason = f"the first is '{data.images[0].path.name}'" if data.images else " | ".join(unreadable)
    raise DataError(
        f"{data.source}: none of its images can be read: {reason}; searched {searched}; put the images into one of "
        "these folders"
    )
