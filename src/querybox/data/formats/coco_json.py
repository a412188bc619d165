"""The content of a COCO file: parsed, with unique numbers for ids and a box for every annotation."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter, ValidationError

from querybox.data.findings import FindingCollector
from querybox.data.formats.coco_mask import StatedBox, mask_box, read_mask
from querybox.data.image import MAX_PIXELS
from querybox.data.json_stream import stream_members
from querybox.data.parsing import NO_BOOL, Number, validation_problem, without_bool
from querybox.data.text import read_text
from querybox.errors import DataError
from querybox.masks import Region
from querybox.text import counted


def _number_or_digits(value: object) -> object:
    """Return an id that is a number or digits, and not a string such as ``2015_1`` or ``1.0``, which pydantic converts.

    Raises:
        ValueError: It is a string of other characters than digits, true or false.
    """
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("Input should be a number or a string")
    return without_bool(value)


Id = Annotated[
    Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number_or_digits)] | str,
    Field(union_mode="left_to_right"),
]
"""An id as written; strings of digits are numbers."""
Pixels = Annotated[int, Field(ge=0, le=MAX_PIXELS), NO_BOOL]
"""A side of an image; 0, which some tools write, if it is not known."""


@dataclass(slots=True, kw_only=True)
class CocoCategory:
    """An entry of `categories`."""

    id: Id
    name: str
    isthing: bool | None = None


@dataclass(slots=True, kw_only=True)
class CocoImage:
    """An entry of `images`."""

    id: Id
    file_name: Annotated[str, Field(validation_alias=AliasChoices("file_name", "coco_url"))]
    """The name, or in LVIS, which has none, the URL that ends with it."""
    width: Pixels | None = None
    height: Pixels | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None if one of them is not stated."""
        return (self.height, self.width) if self.height and self.width else None


@dataclass(slots=True, kw_only=True)
class CocoAnnotation:
    """An entry of `annotations`."""

    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: StatedBox = None
    segmentation: Any = None
    area: Number | None = None
    iscrowd: bool | None = None


@dataclass(slots=True, kw_only=True)
class CocoFile:
    """A COCO file as a whole, which is validated only if it is malformed, for the message."""

    categories: list[CocoCategory]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]


class Annotations:
    """All annotations of a file, as lists of what they have in common."""

    def __init__(self) -> None:
        self.ids: list[Id | None] = []
        self.image_ids: list[Id] = []
        self.category_ids: list[Id] = []
        self.boxes_xywh = array("d")
        """The box of each annotation; NaN without one."""
        self.has_box = bytearray()
        self.boxed = bytearray()
        """Whether the box of each annotation is that of its polygons or mask."""
        self.areas = array("d")
        """The area of each annotation; NaN without one."""
        self.crowd = bytearray()
        self.has_crowd = bytearray()
        self.masks: dict[int, Region] = {}
        """The regions of the annotations that have one, by index."""

    def add(self, item: CocoAnnotation, mask: Region | None, *, boxed: bool) -> None:
        """Add an annotation."""
        self.boxed.append(boxed)
        if mask is not None:
            self.masks[len(self.ids)] = mask
        self.ids.append(item.id)
        self.image_ids.append(item.image_id)
        self.category_ids.append(item.category_id)
        self.boxes_xywh.extend(item.bbox or (math.nan,) * 4)
        self.has_box.append(item.bbox is not None)
        self.areas.append(math.nan if item.area is None else item.area)
        self.crowd.append(bool(item.iscrowd))
        self.has_crowd.append(item.iscrowd is not None)


@dataclass(slots=True, kw_only=True)
class Content:
    """What is read of a COCO file."""

    categories: list[CocoCategory]
    images: list[CocoImage]
    annotations: Annotations


_FILE = TypeAdapter(CocoFile)
_CATEGORY, _IMAGE, _ANNOTATION = (
    TypeAdapter(CocoCategory),
    TypeAdapter(CocoImage),
    TypeAdapter(CocoAnnotation),
)


def parse_coco(file: Path, findings: FindingCollector) -> Content:
    """Parse a COCO file, one entry at a time, because the whole file takes ten times the memory of what is used of it.

    Annotations without `bbox`, or with zeros, get that of their polygons or mask, if they have them.

    Raises:
        DataError: The file is not COCO JSON.
    """
    text = read_text(file, findings)
    try:
        content = _parse(text, findings)
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise _error(file, text, error) from None
    check_ids(content.categories, content.images, content.annotations.ids, findings)
    return content


def _parse(text: str, findings: FindingCollector) -> Content:
    content: dict[str, Any] = {}
    for name, items in stream_members(text, {"categories", "images", "annotations"}):
        if name == "annotations":
            content[name] = Annotations()
            for index, item in enumerate(items):
                annotation = _ANNOTATION.validate_python(item)
                boxed = _add_box(index, annotation, findings)
                content[name].add(annotation, _mask(index, annotation, findings), boxed=boxed)
        else:
            adapter: TypeAdapter[Any] = _CATEGORY if name == "categories" else _IMAGE
            content[name] = [adapter.validate_python(item) for item in items]
    if len(content) < 3:
        raise ValueError("lists are missing")
    return Content(**content)


def _error(file: Path, text: str, error: Exception) -> DataError:
    """Return the error about a malformed file: its first problem, with the place in the file as a whole."""
    problem, count = validation_problem(error), ""
    try:
        _FILE.validate_json(text)
    except ValidationError as found:
        problem, count = validation_problem(found), f" ({counted(found.error_count(), 'validation error')})"
    return DataError(
        f"{file}: {problem}; expected COCO JSON, an object with 'images', 'annotations' and 'categories'{count}"
    )


def _add_box(index: int, item: CocoAnnotation, findings: FindingCollector) -> bool:
    """Add the box of its polygons or mask to an annotation without one, and return whether that was done."""
    if item.bbox is not None and any(item.bbox):
        return False
    if (box := mask_box(item.segmentation)) is not None:
        item.bbox = box
        findings.add("boxed_shape", location(index, item.id))
        return True
    if item.bbox is None:
        what = "has neither a bbox nor polygons or a mask with pixels; expected bbox [x, y, width, height]"
        findings.add("malformed", f"{location(index, item.id)}: {what}")
    return False


def _mask(index: int, item: CocoAnnotation, findings: FindingCollector) -> Region | None:
    try:
        return read_mask(item.segmentation)
    except DataError as error:
        if item.bbox is not None:  # otherwise the annotation is malformed as a whole
            findings.add("malformed_mask", f"{location(index, item.id)}: {error}")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """All annotations of a file in arrays, by image."""

    ids: Sequence[Id | None]
    boxes_xyxy: Float64[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    areas: Float64[np.ndarray, " N"]
    no_area: Bool[np.ndarray, " N"]
    """Whether the annotation has no area, or one of 0, which some tools write if it is not known."""
    no_iscrowd: Bool[np.ndarray, " N"]
    """Whether the annotation has no iscrowd."""
    masks: Mapping[int, Region]
    """The regions of the annotations that have one, by index."""
    boxed: Bool[np.ndarray, " N"]
    """Whether the box of the annotation is that of its polygons or mask."""
    order: Int64[np.ndarray, " M"]
    """The annotations that have an image, a category and a box, by image."""
    starts: Int64[np.ndarray, " I"]
    """Where the annotations of each image begin in `order`, and at the end where those of the last image end."""

    @classmethod
    def of(cls, items: Annotations, labels: Mapping[Id, int], images: Mapping[Id, int]) -> Self:
        """Create the columns of annotations, given the label of each category id and the index of each image id."""
        count = len(items.ids)
        boxes = np.frombuffer(items.boxes_xywh, dtype=np.float64).reshape(-1, 4)
        areas = np.frombuffer(items.areas, dtype=np.float64)
        with np.errstate(over="ignore"):  # infinite boxes are dropped, with a finding
            boxes_xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        of_label = np.fromiter((labels.get(one, -1) for one in items.category_ids), np.int64, count)
        of_image = np.fromiter((images.get(one, -1) for one in items.image_ids), np.int64, count)
        of_image[(of_label < 0) | ~np.frombuffer(items.has_box, dtype=bool)] = -1
        order = np.argsort(of_image, kind="stable")
        return cls(
            ids=items.ids,
            boxes_xyxy=boxes_xyxy,
            labels=of_label,
            crowd=np.frombuffer(items.crowd, dtype=bool),
            areas=areas,
            no_area=~(np.isfinite(areas) & (areas > 0)),
            no_iscrowd=~np.frombuffer(items.has_crowd, dtype=bool),
            masks=items.masks,
            boxed=np.frombuffer(items.boxed, dtype=bool),
            order=order,
            starts=np.searchsorted(of_image[order], np.arange(max(images.values(), default=-1) + 2)),
        )

    def of_image(self, index: int) -> Int64[np.ndarray, " G"]:
        """Return the indices of the annotations of `images[index]`."""
        return self.order[self.starts[index] : self.starts[index + 1]]

    def location(self, index: int) -> str:
        """Return the place of an annotation for messages."""
        return location(index, self.ids[index])


def numbers(ids: Iterable[Id], kind: str, findings: FindingCollector) -> dict[Id, int]:
    """Return a number for each id: itself, or 1, 2 ... in the order of `ids` if some are not numbers."""
    unique = list(dict.fromkeys(ids))
    names = [one for one in unique if isinstance(one, str)]
    if names:
        findings.add("string_id", f"{kind} ids such as {names[0]!r}", count=len(names))
        return {one: number for number, one in enumerate(unique, start=1)}
    return {one: one for one in unique if isinstance(one, int)}


def location(index: int, annotation_id: Id | None) -> str:
    """Return the place of an annotation for messages."""
    return f"annotations[{index}]" + ("" if annotation_id is None else f" (id {annotation_id})")


def check_ids(
    categories: Sequence[CocoCategory],
    images: Sequence[CocoImage],
    annotations: Iterable[Id | None],
    findings: FindingCollector,
) -> None:
    """Add findings for ids and names of classes that are not unique.

    Args:
        categories: The classes.
        images: The images.
        annotations: The ids of annotations.
        findings: Collects the problems.
    """
    kinds = {
        "category": [category.id for category in categories],
        "image": [image.id for image in images],
        "annotation": [one for one in annotations if one is not None],
    }
    for kind, ids in kinds.items():
        if len(set(ids)) == len(ids):  # before they are counted, which takes more memory
            continue
        for number, count in Counter(ids).items():
            if count > 1:
                findings.add(f"repeated_{kind}_id", f"{number} occurs {count} times")
    names = Counter(category.name for category in categories)
    for name, count in names.items():
        if count > 1:
            repeated = [str(category.id) for category in categories if category.name == name]
            findings.add("repeated_category", f"{name!r} with ids {', '.join(repeated)}")
